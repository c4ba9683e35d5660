// One round of @azure/batch against a service: what each step found goes to stdout as JSON.
"use strict";
const { BatchServiceClient, BatchSharedKeyCredentials } = require("@azure/batch");

const client = new BatchServiceClient(
  new BatchSharedKeyCredentials(process.env.AZURE_BATCH_ACCOUNT, process.env.AZURE_BATCH_ACCESS_KEY),
  process.env.AZURE_BATCH_ENDPOINT,
);
const pool = "js-pool";
const job = "js-job";
const found = {};

async function until(what, look) {
  const deadline = Date.now() + 60000;
  for (;;) {
    const answer = await look();
    if (answer) return answer;
    if (Date.now() > deadline) throw new Error(`Not within 60 s: ${what}`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

async function all(first, next) {
  const pages = [first];
  while (pages.at(-1).odatanextLink) pages.push(await next(pages.at(-1).odatanextLink));
  return { pages: pages.length, items: pages.flatMap((page) => [...page]) };
}

async function text(answer) {
  const parts = [];
  for await (const part of answer.readableStreamBody) parts.push(part);
  return Buffer.concat(parts.map((part) => Buffer.from(part))).toString();
}

async function refused(call) {
  try {
    await call();
  } catch (error) {
    return [error.statusCode, error.body && error.body.code];
  }
  return "taken";
}

async function nodes() {
  const idle = await until("two idle nodes", async () => {
    const list = await client.computeNode.list(pool);
    return list.length === 2 && list.every((node) => node.state === "idle") && list;
  });
  return idle.map((node) => node.id);
}

async function main() {
  const images = await client.account.listSupportedImages();
  const image = images.find((one) => one.nodeAgentSKUId.includes("ubuntu"));
  found.images = images.length > 0;
  await client.pool.add({
    id: pool,
    vmSize: "standard_d2s_v3",
    virtualMachineConfiguration: { imageReference: image.imageReference, nodeAgentSKUId: image.nodeAgentSKUId },
    targetDedicatedNodes: 2,
    taskSlotsPerNode: 4,
    metadata: [{ name: "a", value: "1" }],
    startTask: { commandLine: "/bin/true", waitForSuccess: true },
  });
  const [node] = await nodes();
  const shown = await client.pool.get(pool);
  found.pool = [shown.state, shown.allocationState, shown.currentDedicatedNodes, shown.metadata];
  found.exists = [(await client.pool.exists(pool)).body, await refused(() => client.pool.get("none"))];
  await client.pool.patch(pool, { metadata: [{ name: "b", value: "2" }] });
  found.patched = (await client.pool.get(pool)).metadata;
  const counts = await client.account.listPoolNodeCounts();
  found.counts = counts.filter((one) => one.poolId === pool).map((one) => [one.poolId, one.dedicated.idle]);

  await client.job.add({ id: job, poolInfo: { poolId: pool }, priority: 3 });
  await client.task.add(job, {
    id: "hello",
    commandLine: "/bin/sh -c 'echo hello $NAME; echo oops >&2; mkdir deep; echo x > deep/file'",
    environmentSettings: [{ name: "NAME", value: "world" }],
    constraints: { maxWallClockTime: "PT5M" },
  });
  const bulk = Array.from({ length: 100 }, (_, n) => ({ id: `t${n}`, commandLine: n ? "/bin/true" : "/bin/false" }));
  const added = await client.task.addCollection(job, bulk);
  found.added = [added.value.length, [...new Set(added.value.map((one) => one.status.toLowerCase()))]];
  found.taken = await refused(() => client.task.add(job, bulk[0]));
  found.counted = await until("101 completed tasks", async () => {
    const { taskCounts } = await client.job.getTaskCounts(job);
    return taskCounts.completed === 101 && [taskCounts.succeeded, taskCounts.failed];
  });
  const hello = await client.task.get(job, "hello");
  found.task = [hello.state, hello.executionInfo.exitCode, hello.executionInfo.result];
  const failed = await client.task.get(job, "t0");
  found.failed = [failed.executionInfo.result, failed.executionInfo.failureInfo.code];
  const options = { taskListOptions: { filter: "executionInfo/exitCode eq 1", select: "id,state" } };
  found.filtered = (await client.task.list(job, options)).map((one) => one.id);
  const tasks = await all(await client.task.list(job, { taskListOptions: { maxResults: 25 } }), (link) =>
    client.task.listNext(link),
  );
  found.listed = [tasks.pages, tasks.items.length];

  found.output = await text(await client.file.getFromTask(job, "hello", "stdout.txt"));
  found.errors = await text(await client.file.getFromTask(job, "hello", "stderr.txt"));
  const range = { fileGetFromTaskOptions: { ocpRange: "bytes=6-10" } };
  found.part = await text(await client.file.getFromTask(job, "hello", "stdout.txt", range));
  const properties = await client.file.getPropertiesFromTask(job, "hello", "stdout.txt");
  found.length = Number(properties.contentLength);
  const files = await client.file.listFromTask(job, "hello", { recursive: true });
  found.files = files.map((one) => one.name).sort();
  found.nodeFiles = (await client.file.listFromComputeNode(pool, node)).map((one) => one.name).sort();

  const { eTag } = await client.job.get(job);
  await client.job.patch(job, { priority: 4 }, { jobPatchOptions: { ifMatch: eTag } });
  found.stale = await refused(() => client.job.patch(job, { priority: 5 }, { jobPatchOptions: { ifMatch: eTag } }));
  await client.task.add(job, { id: "long", commandLine: "/bin/sleep 600" });
  await until("a running task", async () => (await client.task.get(job, "long")).state === "running");
  await client.task.terminate(job, "long");
  const ended = await until("its end", async () => {
    const task = await client.task.get(job, "long");
    return task.state === "completed" && task;
  });
  found.ended = ended.executionInfo.failureInfo.code;
  await client.task.deleteMethod(job, "hello");
  found.gone = await refused(() => client.task.get(job, "hello"));
  await client.job.disable(job, "requeue");
  await until("a disabled job", async () => (await client.job.get(job)).state === "disabled");
  await client.job.enable(job);
  await client.computeNode.addUser(pool, node, { name: "me", password: "x1Y#abcdef" });
  await client.computeNode.deleteUser(pool, node, "me");
  await client.computeNode.disableScheduling(pool, node);
  await client.computeNode.enableScheduling(pool, node);
  await client.computeNode.reboot(pool, node);
  await nodes();

  const later = new Date(Date.now() + 3600000);
  await client.jobSchedule.add({
    id: "js-schedule",
    schedule: { doNotRunUntil: later, recurrenceInterval: "PT1H" },
    jobSpecification: { poolInfo: { poolId: pool } },
  });
  found.schedules = (await client.jobSchedule.list()).filter((one) => one.id === "js-schedule").map((one) => [one.id, one.state]);
  await client.jobSchedule.deleteMethod("js-schedule");

  await client.job.terminate(job, { terminateReason: "enough" });
  found.reason = await until("a completed job", async () => {
    const shownJob = await client.job.get(job);
    return shownJob.state === "completed" && shownJob.executionInfo.terminateReason;
  });
  await client.pool.resize(pool, { targetDedicatedNodes: 1 });
  await until("one node", async () => (await client.computeNode.list(pool)).length === 1);
  await client.pool.enableAutoScale(pool, { autoScaleFormula: "$TargetDedicatedNodes = 0;" });
  await until("no nodes", async () => (await client.computeNode.list(pool)).length === 0);
  const run = await client.pool.evaluateAutoScale(pool, "$TargetDedicatedNodes = 3;");
  found.evaluated = run.results;
  await client.job.deleteMethod(job);
  await client.pool.deleteMethod(pool);
  await until("no pool", async () => !(await client.pool.list()).some((one) => one.id === pool));
  found.left = [await refused(() => client.job.get(job)), await refused(() => client.pool.get(pool))];
}

main().then(
  () => console.log(JSON.stringify(found)),
  (error) => {
    console.log(JSON.stringify(found));
    console.error(error);
    process.exitCode = 1;
  },
);
