// Runs the repository's own Python in a Web Worker: Pyodide, NumPy, reference/ and tutorials/checks, all from this site.
importScripts("pyodide/pyodide.js");

const ready = new Promise((resolve) => {
  self.addEventListener("message", ({ data }) => data.sources && resolve(start(data.sources)), { once: true });
});

async function start(sources) {
  const pyodide = await loadPyodide({ indexURL: new URL("pyodide/", self.location).href });
  await pyodide.loadPackage("numpy", { messageCallback() {} });
  for (const path of sources) {
    const response = await fetch(path);
    if (!response.ok) throw new Error(`${path}: ${response.status}`);
    pyodide.FS.mkdirTree(`/repository/${path}`.replace(/\/[^/]*$/, ""));
    pyodide.FS.writeFile(`/repository/${path}`, await response.text());
  }
  pyodide.runPython("import sys; sys.path.insert(0, '/repository'); import play");
  return pyodide.runPython(`
import json
def answer(request):
    request = json.loads(request)
    return json.dumps(play.run(request["code"]) if "code" in request else play.compute(**request["settings"]))
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
