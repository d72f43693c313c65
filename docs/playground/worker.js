// Runs the repository's own Python in a Web Worker: Pyodide, NumPy and the sources that it is given, all from this site. A request names a
// function of `module` and its arguments.
importScripts("pyodide/pyodide.js");

const ready = new Promise((resolve) => {
  self.addEventListener("message", ({ data }) => data.sources && resolve(start(data)), { once: true });
});

async function start({ sources, module }) {
  const pyodide = await loadPyodide({ indexURL: new URL("pyodide/", self.location).href });
  await pyodide.loadPackage("numpy", { messageCallback() {} });
  for (const path of sources) {
    const response = await fetch(path);
    if (!response.ok) throw new Error(`${path}: ${response.status}`);
    pyodide.FS.mkdirTree(`/repository/${path}`.replace(/\/[^/]*$/, ""));
    pyodide.FS.writeFile(`/repository/${path}`, new Uint8Array(await response.arrayBuffer()));
  }
  pyodide.globals.set("module", module);
  return pyodide.runPython(`
import importlib, json, sys
sys.path.insert(0, "/repository")
module = importlib.import_module(module)
def answer(request):
    request = json.loads(request)
    return json.dumps(getattr(module, request["function"])(**request["arguments"]))
answer`);
}

ready.then(
  (answer) => {
    self.postMessage({ ready: true });
    self.addEventListener("message", ({ data }) => {
      self.postMessage({ id: data.id, result: JSON.parse(answer(JSON.stringify(data.request))) });
    });
  },
  (error) => self.postMessage({ failed: error?.message ?? JSON.stringify(error) }),
);
