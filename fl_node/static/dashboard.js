"use strict";
// Shows what the server pushes. What comes from chain and store goes in as text, never as markup.

const SILENCE = 15000; // milliseconds without a word after which the server counts as gone
const get = (id) => document.getElementById(id);
const seen = { run: null, nodes: [], rounds: new Map(), blocks: [], problem: "" };
let ahead = 0; // seconds that the server's clock is ahead of this one
let heard = Date.now();
let stream = null;

function element(name, content, attributes = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...[content ?? ""].flat());
  return made;
}

const now = () => Date.now() / 1000 + ahead;
const short = (text) => (text.length > 14 ? `${text.slice(0, 6)}…${text.slice(-4)}` : text);
const percent = (share) => (share === null || share === undefined ? "–" : (100 * share).toFixed(2));
const title = (name) => name.replace(/^learner-/, "learner ").replace(/^./, (letter) => letter.toUpperCase());
const learners = () => {
  const found = new Set();
  for (const node of seen.nodes) if (/^learner-\d+$/.test(node.name)) found.add(Number(node.name.slice(8)));
  for (const one of seen.rounds.values()) for (const id of Object.keys(one.local)) found.add(Number(id));
  return [...found].sort((a, b) => a - b);
};
const colour = (id) => `k${id === 0 ? 0 : ((id - 1) % 8) + 1}`;

function ago(seconds) {
  const past = Math.max(0, now() - seconds);
  if (past < 2) return "now";
  if (past < 120) return `${Math.floor(past)} s ago`;
  if (past < 7200) return `${Math.floor(past / 60)} min ago`;
  if (past < 172800) return `${Math.floor(past / 3600)} h ago`;
  return `${Math.floor(past / 86400)} days ago`;
}
function since(seconds) {
  const text = ago(seconds);
  return text === "now" ? "just now" : `for ${text.slice(0, -4)}`;
}

// The server's events

function listen() {
  stream = new EventSource("events");
  stream.onerror = () => {
    badge("connection lost, reconnecting", "bad");
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 2000); // refused: the browser doesn't try again
  };
  on("reset", () => seen.rounds.clear());
  on("run", (value) => { seen.run = value; showRun(); showRounds(); });
  on("nodes", (value) => { seen.nodes = value; showNodes(); showRounds(); showBlocks(); });
  on("rounds", (value) => { for (const one of value) seen.rounds.set(one.round, one); showRounds(); });
  on("blocks", (value) => { seen.blocks = value; showNodes(); showBlocks(); });
  on("problem", (value) => { seen.problem = value; showRun(); });
  on("alive", () => {});
}

function on(name, show) {
  stream.addEventListener(name, (event) => {
    const { now: theirs, value } = JSON.parse(event.data);
    ahead = theirs - Date.now() / 1000;
    heard = Date.now();
    show(value);
    showState();
  });
}

setInterval(() => {
  for (const one of document.querySelectorAll("[data-ago]")) one.textContent = ago(Number(one.dataset.ago));
  for (const one of document.querySelectorAll("[data-since]")) one.textContent = since(Number(one.dataset.since));
  if (Date.now() - heard > SILENCE) {
    badge(`no update from the server ${ago(heard / 1000 + ahead)}`, "bad");
    if (stream.readyState === EventSource.OPEN) { stream.close(); heard = Date.now(); listen(); }
  }
}, 1000);

function badge(text, kind) {
  if (get("state").textContent !== text) get("state").textContent = text;
  get("state").className = `badge ${kind}`;
}

function showState() {
  const down = seen.nodes.filter((node) => isDown(node)).map((node) => node.name);
  const run = seen.run;
  if (down.length) badge(`${down.join(", ")} down`, "bad");
  else if (!run) badge("no run yet", "");
  else if (run.ended) badge("the run has ended", "good");
  else if (!run.started) badge("the run is starting", "");
  else badge(run.rounds === null ? `round ${run.round}` : `round ${run.round} of ${run.rounds}`, "good");
}

// The run

function showRun() {
  const run = seen.run;
  get("title").textContent = run && run.name ? run.name : "Federated learning";
  document.title = run && run.name ? `${run.name}: federated learning` : "Federated learning";
  const parts = [];
  if (run) {
    if (run.mode) parts.push(`${run.mode === "sync" ? "synchronous" : run.mode === "async" ? "asynchronous" : run.mode}, ${run.rule}, `
      + `${run.model} on ${run.data}. `);
    if (run.header) parts.push(`The header was replaced by ${run.header}. `);
    if (run.hidden) parts.push(element("span", `${run.hidden} `, { id: "hidden" }));
    if (run.verdict) parts.push(element("span", `${run.verdict}. `, { id: "verdict" }));
    if (run.spent) parts.push(element("span", `${run.spent}. `, { id: "privacy" }));
    parts.push("Contract ", element("code", run.contract), ", plan ", element("code", run.plan_cid));
  } else {
    parts.push("No run is deployed yet. This page shows the run when it is deployed.");
  }
  get("about").replaceChildren(...parts);
  const problem = [seen.problem, run && run.problem].filter(Boolean).join("; ");
  get("problem").textContent = problem;
  get("problem").hidden = !problem;
  get("try-note").hidden = !run || run.data !== "digits";
  for (const id of ["rounds-unread", "try-unread"]) {
    get(id).hidden = !run || !run.unread;
    get(id).textContent = (run && run.unread) || "";
  }
  const bar = get("progress");
  bar.hidden = !run || run.rounds === null;
  if (!bar.hidden) {
    bar.setAttribute("aria-valuemax", run.rounds);
    bar.setAttribute("aria-valuenow", Math.min(run.round, run.rounds));
    bar.firstElementChild.style.width = `${100 * Math.min(1, run.round / run.rounds)}%`;
  }
}

// Nodes

const isDown = (node) => [node.chain, node.files].some((part) => part && !part.up);

function part(one, what) {
  if (!one) return element("span", "not visible from here", { class: "quiet" });
  if (!one.up) {
    const text = [element("span", "down ", { class: "gone" }), element("span", since(one.since), { "data-since": one.since, class: "gone" })];
    return element("span", text, { title: one.problem });
  }
  const peers = one.peers === null ? "" : `, ${one.peers} ${one.peers === 1 ? "peer" : "peers"}`;
  const height = one.height === null ? "" : `, block ${one.height}`;
  return element("span", [element("span", "up", { class: "up" }), `${height}${peers}`], { title: `${what} answers` });
}

function showNodes() {
  const cards = seen.nodes.map((node) => {
    const id = /^learner-\d+$/.test(node.name) ? Number(node.name.slice(8)) : 0;
    const sealed = node.chain && node.chain.sealer ? seen.blocks.filter((b) => b.sealer === node.chain.sealer).length : null;
    const rows = [
      element("dt", "Geth"), element("dd", part(node.chain, "Geth")),
      element("dt", "IPFS"), element("dd", part(node.files, "IPFS")),
    ];
    if (node.account || node.last) {
      const last = node.last
        ? `${id ? `local weights of round ${node.last.round}` : `global weights ${node.last.round}`}, in block ${node.last.block}`
        : "nothing yet";
      rows.push(element("dt", "published"), element("dd", last, node.last ? { title: node.last.cid } : {}));
    }
    if (sealed !== null && seen.blocks.length) {
      rows.push(element("dt", "sealed"), element("dd", `${sealed} of the last ${seen.blocks.length} blocks`));
    }
    const doing = node.says && !isDown(node) ? node.says : node.waits_for;
    return element("li", [
      element("h3", [title(node.name), element("span", node.account ? short(node.account) : "", { class: "mono quiet", title: node.account || "" })]),
      element("p", doing || "–", { class: "doing" }),
      element("dl", rows),
      ...[node.chain, node.files].filter((one) => one && !one.up && one.problem).map((one) => element("p", one.problem, { class: "quiet" })),
    ], { class: `card ${colour(id)}${isDown(node) ? " down" : ""}`, "data-node": node.name });
  });
  get("nodes").replaceChildren(...cards);
  const unseen = seen.nodes.filter((node) => !node.chain).map((node) => node.name);
  get("unseen").hidden = !unseen.length;
  get("unseen").textContent = unseen.length
    ? `Geth and IPFS of ${unseen.join(", ")} listen only on their host's loopback, so this page shows only their transactions. `
      + "The peers of the visible nodes and the sealed blocks show whether such a node is up."
    : "";
}

// Rounds

function cell(one, id) {
  if (one.rejected && one.rejected[id]) return element("td", "rejected", { class: "number rejected", title: one.rejected[id] });
  const file = one.local[id];
  if (!file) return element("td", one.missing_learners.includes(id) ? "missing" : "–", { class: "number" });
  return fileCell(file);
}
function fileCell(file) {
  const words = { coming: "…", missing: "missing", large: "too large", bad: "bad file", pruned: "pruned" };
  const text = file.accuracy !== null ? percent(file.accuracy) : words[file.state] || "published";
  const loss = file.loss !== null ? `, loss ${file.loss.toFixed(4)}` : "";
  return element("td", text, { class: `number${file.state === "bad" ? " failed" : ""}`, title: `${file.cid}${loss}${file.problem ? `: ${file.problem}` : ""}` });
}

let known = null; // what rows showed before, so that new ones can be marked

function showRounds() {
  const ids = learners();
  const all = [...seen.rounds.values()].sort((a, b) => b.round - a.round);
  const table = get("rounds");
  table.tHead.replaceChildren(element("tr", [
    element("th", "round", { scope: "col", class: "number" }),
    ...ids.map((id) => element("th", `learner ${id}`, { scope: "col", class: "number" })),
    element("th", "global", { scope: "col", class: "number" }), element("th", "global weights", { scope: "col" }),
  ]));
  const before = known;
  known = new Map(all.map((one) => [one.round, one.result ? one.result.cid : ""]));
  const rows = all
    .filter((one) => one.result || !(seen.run && seen.run.ended))
    .map((one) => element("tr", [
      element("th", String(one.round), { scope: "row", class: "number" }),
      ...ids.map((id) => cell(one, id)),
      one.result ? fileCell(one.result) : element("td", "open", { class: "number quiet" }),
      element("td", one.result ? short(one.result.cid) : "", { class: "mono", title: one.result ? one.result.cid : "" }),
    ], { "data-round": one.round, class: before && one.result && before.get(one.round) !== one.result.cid ? "fresh" : "" }));
  table.tBodies[0].replaceChildren(...rows);
  const closed = all.filter((one) => one.result);
  const unmeasured = closed.length && !(seen.run && seen.run.unread) && closed.every((one) => one.result.accuracy === null);
  get("rounds-note").hidden = !unmeasured;
  get("rounds-note").textContent = unmeasured
    ? "Files of global weights have no accuracy. The header logs it, but this page can't read the header's log; "
      + "see the report, or start fl-node dashboard with --evaluate." : "";
  chart(ids, closed.reverse());
}

const SVG = "http://www.w3.org/2000/svg";
function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

function chart(ids, closed) {
  const lines = [...ids, 0].map((id) => ({
    id,
    points: closed.map((one) => [one.round, id ? (one.rejected[id] ? null : one.local[id]?.accuracy) : one.result.accuracy])
      .filter(([, share]) => share !== null && share !== undefined),
  })).filter((line) => line.points.length);
  if (!lines.length) { get("chart").replaceChildren(); return; }
  const width = Math.max(get("chart").clientWidth, 280), height = 220, left = 44, right = 14, top = 10, bottom = 24;
  const shares = lines.flatMap((line) => line.points.map(([, share]) => 100 * share));
  const least = Math.min(...shares), most = Math.max(...shares);
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20].find((one) => (most - least) / one <= 4) || 25;
  const low = Math.max(0, Math.floor(least / step) * step), high = Math.min(100, Math.max(low + step, Math.ceil(most / step) * step));
  const first = closed[0].round, last = Math.max(closed[closed.length - 1].round, first + 1);
  const x = (round) => left + ((round - first) / (last - first)) * (width - left - right);
  const y = (share) => top + (1 - (share - low) / (high - low)) * (height - top - bottom);
  const names = lines.map((line) => `${line.id ? `learner ${line.id}` : "global"} ${percent(line.points.at(-1)[1])} %`);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Accuracy by round; last: ${names.join(", ")}` });
  for (let share = low; share <= high + step / 100; share += step) {
    svg.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: y(share), y2: y(share) }));
    svg.append(shape("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, `${+share.toFixed(1)} %`));
  }
  const every = Math.ceil((last - first + 1) / 10);
  for (let round = first; round <= last; round += every) {
    svg.append(shape("text", { x: x(round), y: height - 6, "text-anchor": "middle" }, String(round)));
  }
  for (const { id, points } of lines) {
    const path = points.map(([round, share]) => `${x(round).toFixed(1)},${y(100 * share).toFixed(1)}`);
    svg.append(shape("polyline", { class: `line ${colour(id)}${id ? "" : " global"}`, points: path.join(" ") }));
    if (points.length <= 30) {
      for (const [round, share] of points) svg.append(shape("circle", { class: colour(id), cx: x(round), cy: y(100 * share), r: id ? 3 : 4 }));
    }
  }
  const legend = element("ul", lines.map(({ id }) => element("li", id ? `learner ${id}` : "global", { class: colour(id) })), { class: "legend" });
  get("chart").replaceChildren(svg, legend);
}

// Blocks

function sealerName(address) {
  if (!address) return "–";
  const node = seen.nodes.find((one) => one.chain && one.chain.sealer === address);
  return node ? node.name : short(address);
}

let highest = null;

function showBlocks() {
  const rows = seen.blocks.map((block) => {
    const actions = block.actions.length
      ? element("ul", block.actions.map((one) => element("li", one.text, { class: one.ok ? "" : "failed", title: one.cid || one.transaction })))
      : element("span", block.number ? "no transaction" : "genesis", { class: "quiet" });
    return element("tr", [
      element("th", String(block.number), { scope: "row", class: "number", title: block.hash }),
      element("td", block.number ? ago(block.time) : "", {
        class: "when", title: new Date(1000 * block.time).toISOString(), ...(block.number ? { "data-ago": block.time } : {}),
      }),
      element("td", sealerName(block.sealer), { class: "who", title: block.sealer ? `${block.sealer}${block.in_turn ? ", in turn" : ", out of turn"}` : "" }),
      element("td", actions), element("td", block.gas.toLocaleString("en"), { class: "number" }),
    ], { "data-block": block.number, class: highest !== null && block.number > highest ? "fresh" : "" });
  });
  if (seen.blocks.length) highest = seen.blocks[0].number;
  get("blocks").tBodies[0].replaceChildren(...rows);
  const counts = new Map();
  for (const block of seen.blocks) if (block.sealer) counts.set(block.sealer, (counts.get(block.sealer) || 0) + 1);
  const text = [...counts].sort((a, b) => b[1] - a[1]).map(([address, count]) => `${sealerName(address)} ${count}`).join(", ");
  get("sealers").textContent = text ? `Sealers of the last ${seen.blocks.length} blocks: ${text}.` : "";
}

// The drawing

const canvas = get("canvas");
const pen = canvas.getContext("2d", { willReadFrequently: true });
const SIDE = canvas.width;
const STROKE = 22;
const STEP = 8;
let sample = null; // a test image that was not drawn over: its own pixels are sent
let drawn = false;
let last = null; // of a stroke
let caret = { x: SIDE / 2, y: SIDE / 2, down: false };
let waiting = null;
let asked = 0;
let first = true;

function clear() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, SIDE, SIDE);
  sample = null;
  drawn = false;
  showBars(null);
  say("Nothing drawn yet.");
}
function stroke(from, to) {
  if (sample) clear();
  sample = null;
  drawn = true;
  pen.strokeStyle = "#fff";
  pen.lineWidth = STROKE;
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(from.x, from.y);
  pen.lineTo(to.x, to.y + 0.01); // a point is a line too
  pen.stroke();
}
function at(event) {
  const box = canvas.getBoundingClientRect();
  return { x: ((event.clientX - box.left) / box.width) * SIDE, y: ((event.clientY - box.top) / box.height) * SIDE };
}
canvas.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  canvas.setPointerCapture(event.pointerId);
  last = at(event);
  stroke(last, last);
  clearTimeout(waiting);
  event.preventDefault();
  canvas.focus({ preventScroll: true });
});
canvas.addEventListener("pointermove", (event) => {
  if (!last) return;
  const next = at(event);
  stroke(last, next);
  last = next;
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, () => {
    if (last) { last = null; soon(); }
  });
}
canvas.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (moves[event.key]) {
    const [dx, dy] = moves[event.key];
    const next = { ...caret, x: Math.min(SIDE - 12, Math.max(12, caret.x + dx)), y: Math.min(SIDE - 12, Math.max(12, caret.y + dy)) };
    if (caret.down) { stroke(caret, next); soon(); }
    caret = next;
    say(`Pen ${caret.down ? "down" : "up"} at ${Math.round((100 * caret.x) / SIDE)} % from the left, ${Math.round((100 * caret.y) / SIDE)} % from the top.`);
  } else if (event.key === " ") {
    caret.down = !caret.down;
    if (caret.down) { stroke(caret, caret); soon(); }
    say(`Pen ${caret.down ? "down" : "up"}.`);
  } else if (event.key === "Enter") {
    ask();
  } else if (event.key === "Escape") {
    caret.down = false;
    clear();
  } else {
    return;
  }
  event.preventDefault();
});

function soon() {
  clearTimeout(waiting);
  waiting = setTimeout(ask, 700);
}
function say(...parts) { get("answer").replaceChildren(...parts); }

const bars = [...Array(10).keys()].map((digit) => {
  const fill = element("b");
  const share = element("span", "–");
  const row = element("li", [element("span", String(digit)), element("i", fill), share]);
  get("bars").append(row);
  return { row, fill, share };
});
function showBars(probabilities) {
  const best = probabilities ? Math.max(...probabilities) : null;
  bars.forEach(({ row, fill, share }, digit) => {
    const one = probabilities ? probabilities[digit] : 0;
    fill.style.width = `${100 * one}%`;
    share.textContent = probabilities ? `${(100 * one).toFixed(1)} %` : "–";
    row.className = probabilities && one === best ? "best" : "";
  });
}

function bytes(text) { return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)); }
async function fetched(path, options) {
  const answer = await fetch(path, options);
  const content = await answer.json().catch(() => ({ error: `the server returned ${answer.status}` }));
  if (!answer.ok) throw new Error(content.error || `the server returned ${answer.status}`);
  return content;
}
function slow() {
  return first ? "Asking… The first request loads TensorFlow, which takes a few seconds." : "Asking…";
}

async function ask() {
  clearTimeout(waiting);
  if (!drawn && !sample) { say("Nothing drawn yet."); return; }
  const number = ++asked;
  const body = sample ? sample.pixels : pixels();
  const label = sample ? sample.label : null;
  say(slow());
  try {
    const found = await fetched("predict", { method: "POST", body, headers: { "Content-Type": "application/octet-stream" } });
    if (number !== asked) return; // another question was asked since
    first = false;
    showBars(found.probabilities);
    const truth = label === null ? "" : label === found.digit ? ", correct" : `; the label is ${label}`;
    say(element("strong", String(found.digit)), `${(100 * found.probabilities[found.digit]).toFixed(1)} %, by global weights ${found.round}${truth}`);
  } catch (error) {
    if (number === asked) { showBars(null); say(element("span", `No answer: ${error.message}`, { class: "failed" })); }
  }
}
function pixels() {
  const colours = pen.getImageData(0, 0, SIDE, SIDE).data;
  return Uint8Array.from({ length: SIDE * SIDE }, (_, index) => colours[4 * index]);
}
async function takeSample() {
  say(slow());
  try {
    const found = await fetched("image");
    const own = bytes(found.pixels);
    clear();
    const scale = SIDE / found.side;
    own.forEach((grey, index) => {
      pen.fillStyle = `rgb(${grey},${grey},${grey})`;
      pen.fillRect((index % found.side) * scale, Math.floor(index / found.side) * scale, scale, scale);
    });
    sample = { pixels: own, label: found.label };
    await ask();
  } catch (error) {
    say(element("span", `No test image: ${error.message}`, { class: "failed" }));
  }
}
get("ask").addEventListener("click", ask);
get("clear").addEventListener("click", () => { asked += 1; clear(); });
get("sample").addEventListener("click", takeSample);

addEventListener("resize", showRounds);
clear();
showRun();
listen();
