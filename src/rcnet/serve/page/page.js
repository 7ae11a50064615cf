"use strict";
// The page of the server: one image, before and after, and how busy the server is.
const SETTLE = 250; // ms without a change before the server is asked
const SECONDS = 60; // that the chart shows
const MOST = 5e5; // pixels; of a larger image, the middle
const PATIENCE = 20000; // ms, for what takes longer than the objective
const state = { clean: null, part: "", known: false, noisy: null, models: [], timer: 0, asked: 0, history: [] };

async function ask(path, options = {}) {
  const token = $("token").value;
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  if (answer.status === 401) document.querySelector(".token").hidden = false;
  if (!answer.ok) throw Object.assign(new Error((await answer.json()).detail), { status: answer.status });
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

function blobOf(pixels) {
  const canvas = canvasOf(pixels.width, pixels.height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

function show(image, blob) {
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
  image.hidden = false;
}

async function take(blob, known) {
  try {
    state.clean = await pixelsOf(blob, MOST);
  } catch {
    return say("This file is no image that the browser can show: give PNG, JPEG or WebP.", true);
  }
  const { width, height, whole } = state.clean;
  state.part = whole ? `The middle ${width}x${height} of ${whole} pixels. ` : "";
  state.known = known;
  if (!known) $("noise").value = 0;
  showDial();
  await prepare();
}

async function prepare() {
  if (!state.clean) return;
  const sigma = Number($("noise").value);
  state.noisy = sigma ? addNoise(state.clean, sigma) : state.clean;
  state.blob = await blobOf(state.noisy);
  show($("before"), state.blob);
  $("after").hidden = $("edge").hidden = true;
  later();
}

function later() {
  showDial();
  clearTimeout(state.timer);
  state.timer = setTimeout(denoise, SETTLE);
}

async function denoise() {
  if (!state.blob || !model()) return;
  const asked = ++state.asked;
  const query = new URLSearchParams({ model: model().name, strength: $("strength").value });
  const place = Number($("dial").value);
  if (place < model().settings.length) query.set("steps", model().settings[place].setting);
  say("The server is at work…");
  try {
    const [answer, late] = await patiently(query);
    const blob = await answer.blob();
    if (asked !== state.asked) return; // a newer question is under way
    show($("after"), blob);
    $("compare").disabled = $("edge").hidden = false;
    compare();
    say(state.part + late);
    await tell(answer.headers, blob);
  } catch (error) {
    if (asked === state.asked) say(error.message || "The server cannot be reached.", true);
  }
}

// The answer in the objective or, where the image is too large for that, when a person would still wait for it; and what to say.
async function patiently(query) {
  const send = () => ask(`v1/denoise?${query}`, { method: "POST", body: state.blob, headers: { accept: "image/png" } });
  try {
    return [await send(), ""];
  } catch (error) {
    if (error.status !== 413) throw error;
    query.set("deadline_ms", PATIENCE);
    return [await send(), "It takes longer than the server's objective."];
  }
}

async function tell(headers, blob) {
  const of = (name) => headers.get(`rcnet-${name}`);
  const facts = {
    Setting: of("setting"),
    "Compute": `${Number(of("compute-ms")).toFixed(0)} ms`,
    "Queue": `${Number(of("queue-ms")).toFixed(0)} ms`,
    MACs: `${(Number(of("macs")) / 1e9).toFixed(2)} G`,
    "Level found": `sigma ${Number(of("level")).toFixed(1)}`,
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
  } catch (error) {
    $("busy").textContent = error.message || "The server cannot be reached.";
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
    return say(error.message || "The server cannot be reached.", true);
  }
  if (!state.models.length) return say("No model that denoises is served: start the server with one, e.g. r3_fast.photo.", true);
  $("model").replaceChildren(...state.models.map((one) => new Option(one.name)));
  showModel();
  if (!state.clean) await take(await (await ask("sample.png")).blob(), true);
}

$("file").addEventListener("change", () => $("file").files[0] && take($("file").files[0], false));
$("sample").addEventListener("click", async () => {
  if (!Number($("noise").value)) $("noise").value = 25;
  await take(await (await ask("sample.png")).blob(), true);
});
$("stage").addEventListener("dragover", (event) => (event.preventDefault(), $("stage").classList.add("over")));
$("stage").addEventListener("dragleave", () => $("stage").classList.remove("over"));
$("stage").addEventListener("drop", (event) => {
  event.preventDefault();
  $("stage").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) take(file, false);
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
