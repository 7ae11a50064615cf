"use strict";
// The page of the server: one image, before and after, and how busy the server is.
const $ = (id) => document.getElementById(id);
const SETTLE = 250; // ms without a change before the server is asked
const SECONDS = 60; // that the chart shows
const state = { clean: null, known: false, noisy: null, models: [], timer: 0, asked: 0, history: [] };

const say = (text, error = false) => {
  $("message").textContent = text;
  $("message").classList.toggle("error", error);
};

async function ask(path, options = {}) {
  const token = $("token").value;
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  if (answer.status === 401) document.querySelector(".token").hidden = false;
  if (!answer.ok) throw new Error((await answer.json()).detail);
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

// Gaussian noise by Box and Muller from a fixed seed, clipped and rounded as a file is.
function addNoise(pixels, sigma) {
  let seed = 1;
  const uniform = () => ((seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) + 0.5) / 2 ** 32;
  const out = new ImageData(new Uint8ClampedArray(pixels.data), pixels.width, pixels.height);
  for (let i = 0; i < out.data.length; i += 4) {
    for (let c = 0; c < 3; c++) {
      const z = Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
      out.data[i + c] = Math.round(pixels.data[i + c] + sigma * z);
    }
  }
  return out;
}

function psnr(a, b) {
  let sum = 0;
  for (let i = 0; i < a.data.length; i += 4) for (let c = 0; c < 3; c++) sum += (a.data[i + c] - b.data[i + c]) ** 2;
  const error = sum / ((a.data.length / 4) * 3);
  return error ? 10 * Math.log10(255 ** 2 / error) : Infinity;
}

function canvasOf(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

async function pixelsOf(blob) {
  const bitmap = await createImageBitmap(blob);
  const context = canvasOf(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
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
    state.clean = await pixelsOf(blob);
  } catch {
    return say("This file is no image that the browser can show: give PNG, JPEG or WebP.", true);
  }
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
    const answer = await ask(`v1/denoise?${query}`, { method: "POST", body: state.blob, headers: { accept: "image/png" } });
    const blob = await answer.blob();
    if (asked !== state.asked) return; // a newer question is under way
    show($("after"), blob);
    $("compare").disabled = $("edge").hidden = false;
    compare();
    say("");
    await tell(answer.headers, blob);
  } catch (error) {
    if (asked === state.asked) say(error.message || "The server cannot be reached.", true);
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
  if (state.known) {
    const before = psnr(state.noisy, state.clean);
    facts.PSNR = `${before === Infinity ? "∞" : before.toFixed(2)} → ${psnr(await pixelsOf(blob), state.clean).toFixed(2)} dB`;
  }
  $("facts").replaceChildren(
    ...Object.entries(facts).map(([name, value]) => {
      const pair = document.createElement("div");
      for (const [tag, text] of [["dt", name], ["dd", value]]) {
        pair.append(Object.assign(document.createElement(tag), { textContent: text }));
      }
      return pair;
    }),
  );
}

function compare() {
  const share = Number($("compare").value);
  $("after").style.clipPath = `inset(0 0 0 ${share}%)`;
  $("edge").style.left = `${share}%`;
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
