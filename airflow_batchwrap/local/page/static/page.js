// Keeps the page as it would be after a reload, and follows outputs as they grow. Only reads.
"use strict";

const QUICK = 1000, SLOW = 2500, LOST = 4000; // pauses, in ms
const KEPT = 1_000_000; // characters of an output that stay on the page
const LINE = 64_000; // characters of a line that can still be overwritten

const live = document.getElementById("live");
const loops = [];
let tag = null;

function say(kind, text) {
  live.className = "live " + kind;
  if (live.textContent !== text) live.textContent = text;
}

// Run a function over and over, while somebody looks; it says how long to wait, or null to end.
function loop(work) {
  let timer = 0, busy = false, over = false;
  async function turn() {
    clearTimeout(timer);
    if (busy || over) return;
    busy = true;
    const begun = performance.now();
    let pause;
    try {
      pause = await work();
    } catch {
      say("lost", "no answer, trying again");
      pause = LOST;
    }
    busy = false;
    over = pause === null;
    // What takes the service long is asked for less often.
    if (!over && !document.hidden) timer = setTimeout(turn, Math.max(pause, 10 * (performance.now() - begun)));
  }
  loops.push(turn);
  turn();
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) loops.forEach((turn) => turn()); });

function ended(answer) {
  if (answer.status === 403) say("lost", "locked: open the address with the token again");
  else if (answer.status === 404) say("lost", "this is gone");
  else throw new Error(String(answer.status));
  return null;
}

// Make one element like another and leave alone what is the same, so that focus, selection and scrolling stay.
function become(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) { old.replaceWith(fresh); return; }
  if (old.nodeType !== Node.ELEMENT_NODE) { if (old.data !== fresh.data) old.data = fresh.data; return; }
  if (old.hasAttribute("data-own") || old.isEqualNode(fresh)) return;
  for (const { name } of [...old.attributes]) if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const keyed = new Map();
  for (const child of old.children) if (child.dataset.key !== undefined) keyed.set(child.dataset.key, child);
  let at = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const key = next.dataset?.key;
    const same = key === undefined ? (at && at.dataset?.key === undefined ? at : null) : keyed.get(key);
    if (!same) { old.insertBefore(next, at); continue; }
    if (key !== undefined) keyed.delete(key);
    if (same === at) at = at.nextSibling;
    else old.insertBefore(same, at);
    become(same, next);
  }
  while (at) { const next = at.nextSibling; at.remove(); at = next; }
}

async function refresh() {
  const headers = { "Batchwrap-Live": "1" };
  if (tag) headers["If-None-Match"] = tag;
  const answer = await fetch(location.pathname + location.search, { headers });
  if (answer.status === 304) { say("on", "live"); return SLOW; }
  if (!answer.ok) return ended(answer);
  tag = answer.headers.get("ETag");
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  document.title = fresh.title;
  // A task that was reactivated writes again.
  const writing = new Set([...fresh.querySelectorAll("[data-output]:not([data-over])")].map((each) => each.dataset.key));
  document.querySelectorAll("[data-output][data-done]").forEach((each) => {
    if (writing.has(each.dataset.key)) { delete each.dataset.done; followed.delete(each); }
  });
  become(document.getElementById("main"), fresh.getElementById("main"));
  document.querySelectorAll("[data-output]").forEach(follow);
  say("on", "live");
  return QUICK;
}

function bytes(count) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) if (count >= size) return (count / size).toFixed(1) + " " + unit;
  return count + " B";
}

const followed = new WeakSet();

function follow(section) {
  if (followed.has(section)) return;
  followed.add(section);
  const pre = section.querySelector("pre"), fill = section.querySelector(".fill");
  let next = null, mark = "", kept = 0, cut = false, tail = null;

  function begin(from) {
    pre.textContent = "";
    tail = pre.appendChild(document.createTextNode(""));
    kept = 0;
    cut = from > 0;
  }

  // As on a terminal: what follows a carriage return takes the place of its line so far.
  function settled(line) { return line.slice(line.lastIndexOf("\r", line.length - 2) + 1); }

  function add(text) {
    const lines = (tail.data + text).split("\n").map(settled);
    let last = lines.pop();
    let whole = lines.length ? lines.join("\n") + "\n" : "";
    if (last.length > LINE) { whole += last; last = ""; }
    if (whole) {
      pre.insertBefore(document.createTextNode(whole), tail);
      kept += whole.length;
    }
    tail.data = last;
    while (kept > KEPT && pre.firstChild !== tail) {
      kept -= pre.firstChild.length;
      pre.firstChild.remove();
      cut = true;
    }
  }

  loop(async () => {
    if (!section.isConnected) { followed.delete(section); return null; }
    const query = next === null ? "" : "?" + new URLSearchParams({ from: next, mark });
    const answer = await fetch(section.dataset.output + query);
    // The page's own loop tells what is gone.
    if (!answer.ok) return answer.status === 403 || answer.status === 404 ? null : ended(answer);
    const part = await answer.json();
    const bottom = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 40;
    const anew = part.mark !== mark || part.from !== next;
    if (anew) begin(part.from);
    if (part.text) add(part.text);
    const grown = part.next !== next;
    next = part.next;
    mark = part.mark;
    if (anew || (bottom && grown)) pre.scrollTop = pre.scrollHeight;
    fill.textContent = (part.size ? bytes(part.size) : part.done ? "empty" : "nothing yet") + (cut ? ", its end shown" : "");
    if (part.done) { section.dataset.done = ""; return null; }
    return next < part.size ? 50 : grown ? QUICK / 2 : QUICK;
  });
}

document.querySelectorAll("[data-output]").forEach(follow);
// Not at once: what was just loaded is what there is.
setTimeout(() => loop(refresh), QUICK);
say("on", "live");
