// The page: one image, before and after, and what it cost.
const SETTLE = 200; // ms without a change before the network is asked
const worker = new Worker("worker.js", { type: "module" });
const state = { model: null, threads: 1, clean: null, known: false, noisy: null, planes: null, out: null, fresh: false, id: 0, timer: 0 };

function planesOf({ data, width, height }) {
  const size = width * height;
  const planes = new Float32Array(3 * size);
  for (let i = 0; i < size; i++) for (let c = 0; c < 3; c++) planes[c * size + i] = data[4 * i + c] / 255;
  return planes;
}

// Of a network that is told how much to remove: the strength is in what it is told.
const isTold = () => state.model?.levels === 2;

// Of those rows and columns: the image, and `strength` times what the network took away.
function draw({ left, top, width, height }) {
  const [whole, size] = [state.noisy.width, state.planes.length / 3];
  const pixels = new ImageData(width, height);
  const strength = isTold() ? 1 : Number($("strength").value);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at += 4) {
      const i = (top + y) * whole + left + x;
      for (let c = 0; c < 3; c++) {
        const [before, after] = [state.planes[c * size + i], state.out[c * size + i]];
        pixels.data[at + c] = 255 * (before + strength * (after - before));
      }
      pixels.data[at + 3] = 255;
    }
  }
  $("after").getContext("2d").putImageData(pixels, left, top);
}

async function take(blob, known) {
  try {
    state.clean = await pixelsOf(blob);
  } catch {
    return say("This file is no image that the browser can show: give PNG, JPEG or WebP.", true);
  }
  state.known = known;
  if (!known) $("noise").value = 0;
  prepare();
}

function prepare() {
  if (!state.clean) return;
  const { width, height } = state.clean;
  const sigma = Number($("noise").value);
  state.noisy = sigma ? addNoise(state.clean, sigma) : state.clean;
  state.planes = planesOf(state.noisy);
  state.out = new Float32Array(state.planes);
  state.fresh = true;
  for (const id of ["before", "after"]) Object.assign($(id), { width, height });
  $("stage").style.setProperty("--ratio", width / height);
  $("before").getContext("2d").putImageData(state.noisy, 0, 0);
  $("after").hidden = $("edge").hidden = true;
  ask();
}

function showDial() {
  $("setting").textContent = state.model?.settings[Number($("dial").value)].name ?? "";
  $("dial").setAttribute("aria-valuetext", $("setting").textContent);
  $("strong").textContent = Number($("strength").value).toFixed(1);
  $("added").textContent = $("noise").value;
}

function ask() {
  showDial();
  if (!state.model || !state.planes) return;
  const { width, height } = state.noisy;
  const image = state.fresh ? { planes: state.planes, width, height } : null;
  state.fresh = false;
  say("The network is at work…");
  finished(false);
  worker.postMessage({ id: ++state.id, place: Number($("dial").value), level: -1, strength: Number($("strength").value), image });
}

function finished(whole) {
  $("save").setAttribute("aria-disabled", !whole);
  if (whole) $("after").toBlob((blob) => { URL.revokeObjectURL($("save").href); $("save").href = URL.createObjectURL(blob); });
  else $("save").removeAttribute("href");
}

function place({ left, top, width, height, data }) {
  const { width: wide, height: tall } = state.noisy;
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < height; y++) {
      const from = (c * height + y) * width;
      state.out.set(data.subarray(from, from + width), (c * tall + top + y) * wide + left);
    }
  }
}

worker.onmessage = ({ data }) => {
  if (data.model) {
    Object.assign(state, { model: data.model, threads: data.threads });
    Object.assign($("dial"), { max: data.model.settings.length - 1, value: data.model.settings.length - 1, disabled: false });
    say("");
    return ask();
  }
  if (data.id !== undefined && data.id !== state.id) return; // a newer request is running
  if (data.error) return say(data.error, true);
  place(data.tile);
  draw(data.tile);
  $("after").hidden = $("compare").disabled = $("edge").hidden = false;
  compare();
  say(data.done < data.of ? `The network is at work: ${data.done} of ${data.of} tiles…` : "");
  if (data.done === data.of) {
    state.ms = data.ms;
    tell();
    finished(true);
  }
};
worker.onerror = () => say("This browser cannot run the network: it needs WebAssembly with SIMD and workers that are modules.", true);

function tell() {
  const setting = state.model.settings[Number($("dial").value)];
  const { width, height } = state.noisy;
  let squares = 0;
  for (let i = 0; i < state.out.length; i++) squares += (state.out[i] - state.planes[i]) ** 2;
  const facts = {
    Setting: setting.name,
    Time: `${state.ms.toFixed(0)} ms`,
    Threads: state.threads,
    MACs: `${((setting.macs * width * height * 3) / state.model.channels / 1e9).toFixed(2)} G`,
    Removed: `sigma ${(255 * Math.sqrt(squares / state.out.length)).toFixed(1)}`,
    Weights: state.model.name,
  };
  if (state.known) {
    const after = $("after").getContext("2d").getImageData(0, 0, width, height);
    facts.PSNR = gain(state.noisy, after, state.clean);
  }
  showFacts(facts);
}

function follow(event) {
  if (event.type === "pointermove" && !event.buttons) return;
  const { left, width } = $("stage").getBoundingClientRect();
  $("compare").value = (100 * (event.clientX - left)) / width;
  compare();
}

function later(act) {
  showDial();
  clearTimeout(state.timer);
  state.timer = setTimeout(act, SETTLE);
}

function strengthen() {
  if (isTold()) return later(ask);
  showDial();
  if (!state.planes || $("after").hidden) return;
  draw({ left: 0, top: 0, width: state.noisy.width, height: state.noisy.height });
  if (!$("message").textContent) (tell(), finished(true));
}

async function sample() {
  await take(await (await fetch("sample.png")).blob(), true);
}

$("file").addEventListener("change", () => $("file").files[0] && take($("file").files[0], false));
$("sample").addEventListener("click", () => {
  if (!Number($("noise").value)) $("noise").value = 25;
  sample();
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", name === "dragover");
    const file = event.dataTransfer.files[0];
    if (name === "drop" && file) take(file, false);
  });
}
for (const name of ["pointerdown", "pointermove"]) $("stage").addEventListener(name, follow);
$("compare").addEventListener("input", compare);
$("dial").addEventListener("input", () => later(ask));
$("strength").addEventListener("input", strengthen);
$("noise").addEventListener("input", () => later(prepare));
showDial();
sample();
