// Computes outside the page, so that the page stays responsive; a new request ends the previous one at the next tile.
let asked = 0;
let image = null;
let turn = Promise.resolve();
const others = () => new Promise((done) => setTimeout(done)); // lets messages in

const network = import("./denoise.js").then(
  (module) => (postMessage({ model: module.model, threads: module.threads }), module),
  (error) => postMessage({ error: error.message }),
);

async function answer({ id, place, level, strength }) {
  const module = await network;
  if (!module || id !== asked) return;
  try {
    const each = async (tile, ms, done, of) => {
      postMessage({ id, tile, ms, done, of }, [tile.data.buffer]);
      await others();
      return id === asked;
    };
    await module.denoise(image.planes, image.width, image.height, place, level, each, strength);
  } catch (error) {
    postMessage({ id, error: error.message });
  }
}

onmessage = ({ data }) => {
  asked = data.id;
  turn = turn.then(() => {
    if (data.image) image = data.image;
    return answer(data);
  });
};
