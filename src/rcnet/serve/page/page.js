"use strict";
// The page of the server: one image, before and after, and how busy the server is.
const SETTLE = 250; // ms without a change before the server is asked
const SECONDS = 60; // that the chart shows
const SIDE = 704; // pixels of a part in which a larger picture is sent
const MARGIN = 48; // pixels of a part that belong to its neighbours: more than a pixel of the result sees
const MOST = 5e7; // pixels that browsers of phones hold
const PATIENCE = 20000; // ms, for what takes longer than the objective
const TRIES = 20; // of a part that the server refuses because it is busy
const GONE = "The server does not answer: it may have been stopped. This page goes on as soon as it is back.";
const state = { clean: null, name: "", known: false, noisy: null, models: [], timer: 0, asked: 0, history: [], gone: false };

async function ask(path, options = {}) {
  const token = $("token").value;
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch {
    throw Object.assign(new Error(GONE), { gone: true });
  }
  if (answer.status === 401) {
    document.querySelector(".token").hidden = false;
    $("metrics").hidden = true; // a link cannot send the token
  }
  if (!answer.ok) {
    const { detail } = await answer.json().catch(() => ({ detail: `The server answered ${answer.status}.` }));
    throw Object.assign(new Error(detail), { status: answer.status, retry: Number(answer.headers.get("retry-after")) });
  }
  return answer;
}

const model = () => state.models[$("model").selectedIndex];

function showModel() {
  const settings = model().settings;
  $("dial").max = settings.length; // the last place leaves the setting to the server
  $("dial").value = settings.length;
  showDial();
}

function showDial() {
  const place = Number($("dial").value);
  const settings = model()?.settings ?? [];
  $("setting").textContent = place < settings.length ? settings[place].setting : "the server's choice";
  $("dial").setAttribute("aria-valuetext", $("setting").textContent);
  $("strong").textContent = Number($("strength").value).toFixed(1);
  $("added").textContent = $("noise").value;
}

// A part of a picture as PNG.
function blobOf(pixels, left = 0, top = 0, width = pixels.width, height = pixels.height) {
  const canvas = canvasOf(width, height);
  canvas.getContext("2d").putImageData(pixels, -left, -top, left, top, width, height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

function show(image, blob, alt) {
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
  image.alt = alt;
  image.hidden = false;
}

async function take(blob, known, name) {
  let pixels;
  try {
    pixels = await pixelsOf(blob, MOST);
  } catch {
    return say("This file is no image that the browser can show: give PNG, JPEG or WebP.", true);
  }
  if (pixels.whole) return say(`The image has ${pixels.whole} pixels: this page takes at most ${MOST / 1e6} million.`, true);
  Object.assign(state, { clean: pixels, known, file: blob, name: name.replace(/\.[^.]*$/, "") });
  if (!known) $("noise").value = 0;
  showDial();
  await prepare();
}

async function prepare() {
  if (!state.clean) return;
  const sigma = Number($("noise").value);
  state.noisy = sigma ? addNoise(state.clean, sigma) : state.clean;
  const alt = sigma ? `The picture with added noise of sigma ${sigma}` : "The picture as it came";
  show($("before"), sigma ? await blobOf(state.noisy) : state.file, alt);
  $("after").hidden = $("edge").hidden = $("download").hidden = true;
  showFacts({});
  later();
}

function later() {
  showDial();
  clearTimeout(state.timer);
  state.timer = setTimeout(denoise, SETTLE);
}

async function denoise() {
  if (!state.noisy || !model()) return;
  const asked = ++state.asked;
  const query = new URLSearchParams({ model: model().name, strength: $("strength").value });
  const place = Number($("dial").value);
  if (place < model().settings.length) query.set("steps", model().settings[place].setting);
  say("The server is at work…");
  try {
    const picture = state.noisy;
    const done = await (picture.width * picture.height <= SIDE * SIDE ? whole(picture, query) : inParts(picture, query, asked));
    if (!done || asked !== state.asked) return; // a newer question is under way
    const { blob, facts, late } = done;
    show($("after"), blob, `The picture without its noise, at setting ${facts.setting}`);
    Object.assign($("download"), { href: $("after").src, download: `${state.name}-denoised.png`, hidden: false });
    $("compare").disabled = $("edge").hidden = false;
    compare();
    say(late);
    await tell(facts, blob);
  } catch (error) {
    if (asked === state.asked) say(error.message, true);
  } finally {
    if (asked === state.asked) $("progress").hidden = true;
  }
}

const factsOf = ({ headers }) => ({
  setting: headers.get("rcnet-setting"),
  compute: Number(headers.get("rcnet-compute-ms")),
  queue: Number(headers.get("rcnet-queue-ms")),
  macs: Number(headers.get("rcnet-macs")),
  level: Number(headers.get("rcnet-level")),
  levels: headers.get("rcnet-levels"),
});

async function whole(picture, query) {
  const [answer, late] = await patiently(query, await blobOf(picture));
  return { blob: await answer.blob(), facts: factsOf(answer), late };
}

// Where the parts of a picture stand: what of each is kept, and what is sent, with a margin of its neighbours. Offsets are even:
// networks that take pixels by two then see the same pairs as in the whole picture.
function partsOf(width, height) {
  const kept = SIDE - 2 * MARGIN;
  const along = (size) => Array.from({ length: Math.ceil(size / kept) }, (_, i) => {
    const [start, end] = [i * kept, Math.min((i + 1) * kept, size)];
    return { start, end, from: Math.max(start - MARGIN, 0), to: Math.min(end + MARGIN, size) };
  });
  return along(height).flatMap((y) => along(width).map((x) => ({ x, y })));
}

// A larger picture, part by part, from its middle on, at the setting of the first and told what the first was told, so that no
// seams show; null if a newer question is under way.
async function inParts(picture, query, asked) {
  const parts = partsOf(picture.width, picture.height);
  parts.unshift(...parts.splice(Math.floor(parts.length / 2), 1));
  const canvas = canvasOf(picture.width, picture.height);
  const context = canvas.getContext("2d");
  const sum = { compute: 0, queue: 0, macs: 0, level: 0 };
  let late = "";
  Object.assign($("progress"), { max: parts.length, value: 0, hidden: false });
  for (const [i, { x, y }] of parts.entries()) {
    say(`Part ${i + 1} of ${parts.length}…`);
    const [answer, longer] = await patiently(query, await blobOf(picture, x.from, y.from, x.to - x.from, y.to - y.from));
    const bitmap = await createImageBitmap(await answer.blob());
    if (asked !== state.asked) return null;
    const [width, height] = [x.end - x.start, y.end - y.start];
    context.drawImage(bitmap, x.start - x.from, y.start - y.from, width, height, x.start, y.start, width, height);
    const facts = factsOf(answer);
    for (const name of Object.keys(sum)) sum[name] += facts[name] / (name === "level" ? parts.length : 1);
    query.set("steps", (sum.setting = facts.setting));
    if (facts.levels) query.set("levels", facts.levels);
    late ||= longer;
    $("progress").value = i + 1;
  }
  return { blob: await new Promise((done) => canvas.toBlob(done, "image/png")), facts: sum, late };
}

// The answer in the objective or, where the image is too large for that, when a person would still wait for it; and what to say.
async function patiently(query, body) {
  for (let i = 1; ; i++) {
    try {
      const answer = await ask(`v1/denoise?${query}`, { method: "POST", body, headers: { accept: "image/png" } });
      return [answer, query.has("deadline_ms") ? "It takes longer than the server's objective." : ""];
    } catch (error) {
      if (error.status === 413 && !query.has("deadline_ms")) query.set("deadline_ms", PATIENCE);
      else if ((error.status === 429 || error.status === 503) && error.retry && i < TRIES)
        await new Promise((done) => setTimeout(done, 1000 * error.retry));
      else throw error;
    }
  }
}

async function tell({ setting, compute, queue, macs, level }, blob) {
  const facts = {
    Setting: setting,
    Compute: `${compute.toFixed(0)} ms`,
    Queue: `${queue.toFixed(0)} ms`,
    MACs: `${(macs / 1e9).toFixed(2)} G`,
    "Level found": `sigma ${level.toFixed(1)}`,
  };
  if (state.known) facts.PSNR = gain(state.noisy, await pixelsOf(blob), state.clean);
  showFacts(facts);
}

async function watch() {
  try {
    const load = await (await ask("v1/load")).json();
    state.history.push(load.load_ms);
    state.history.splice(0, Math.max(0, state.history.length - SECONDS));
    $("load").hidden = load.demonstration === "off";
    $("load").disabled = load.demonstration === "running";
    const taken = Object.entries(load.settings).map(([name, setting]) => `${name} at ${setting}`);
    $("busy").textContent =
      `${load.waiting} waiting, ${load.load_ms.toFixed(0)} ms of work; objective ${load.objective_ms} ms; ` +
      `${load.refused} refused. ${taken.join(", ")}`;
    draw(load.objective_ms);
    if (state.gone) {
      state.gone = false;
      say("The server is back.");
      if (state.models.length) later();
      else start();
    }
  } catch (error) {
    $("busy").textContent = error.message;
    if (error.gone && !state.gone) say(error.message, true);
    state.gone ||= Boolean(error.gone);
  }
  setTimeout(watch, 1000);
}

function draw(objective) {
  const canvas = $("chart");
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  const style = getComputedStyle(document.documentElement);
  const top = 1.1 * Math.max(objective, ...state.history);
  const y = (value) => height - (value / top) * height;
  context.clearRect(0, 0, width, height);
  context.strokeStyle = "#c62828";
  context.setLineDash([6, 4]);
  context.beginPath();
  context.moveTo(0, y(objective));
  context.lineTo(width, y(objective));
  context.stroke();
  context.setLineDash([]);
  context.strokeStyle = style.getPropertyValue("--accent");
  context.lineWidth = 2;
  context.beginPath();
  state.history.forEach((value, i) => context.lineTo((i / (SECONDS - 1)) * width, y(value)));
  context.stroke();
}

async function start() {
  try {
    state.models = (await (await ask("v1/models")).json()).filter((one) => one.task === "denoise");
  } catch (error) {
    return say(error.message, true);
  }
  if (!state.models.length) return say("No model that denoises is served: start the server with one, e.g. r3_fast.photo.", true);
  $("model").replaceChildren(...state.models.map((one) => new Option(one.name)));
  showModel();
  if (!state.clean) await take(await (await ask("sample.png")).blob(), true, "sample.png");
}

$("file").addEventListener("change", () => $("file").files[0] && take($("file").files[0], false, $("file").files[0].name));
$("sample").addEventListener("click", async () => {
  if (!Number($("noise").value)) $("noise").value = 25;
  await take(await (await ask("sample.png")).blob(), true, "sample.png");
});
$("stage").addEventListener("dragover", (event) => (event.preventDefault(), $("stage").classList.add("over")));
$("stage").addEventListener("dragleave", () => $("stage").classList.remove("over"));
$("stage").addEventListener("drop", (event) => {
  event.preventDefault();
  $("stage").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) take(file, false, file.name);
});
$("compare").addEventListener("input", compare);
$("model").addEventListener("change", () => (showModel(), later()));
$("dial").addEventListener("input", later);
$("strength").addEventListener("input", later);
$("noise").addEventListener("input", () => (showDial(), clearTimeout(state.timer), (state.timer = setTimeout(prepare, SETTLE))));
$("token").addEventListener("change", start);
$("load").addEventListener("click", () => ask("v1/load", { method: "POST" }).catch((error) => say(error.message, true)));
start();
watch();
