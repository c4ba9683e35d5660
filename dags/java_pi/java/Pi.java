import java.util.SplittableRandom;

/** Estimates pi: how many of so many random points of a square lie in its circle. */
public final class Pi {
    private Pi() {}

    public static void main(String[] args) {
        long points = args.length > 0 ? Long.parseLong(args[0]) : 1_000_000L;
        SplittableRandom random = new SplittableRandom(args.length > 1 ? Long.parseLong(args[1]) : 1L);
        long inside = 0;
        for (long i = 0; i < points; i++) {
            double x = random.nextDouble();
            double y = random.nextDouble();
            if (x * x + y * y <= 1.0) {
                inside++;
            }
        }
        System.out.println("points " + points);
        System.out.println("pi " + 4.0 * inside / points);
    }
}
