// A text field for code: Tab indents, Enter keeps the indentation, Escape and then Tab leaves.

export function edits(editor) {
  let leaving = false;
  const insert = (event, text) => {
    event.preventDefault();
    editor.setRangeText(text, editor.selectionStart, editor.selectionEnd, "end");
    editor.dispatchEvent(new Event("input"));
  };
  editor.addEventListener("keydown", (event) => {
    const line = editor.value.slice(0, editor.selectionStart).split("\n").pop();
    if (event.key === "Tab" && !event.shiftKey && !leaving) insert(event, "    ");
    if (event.key === "Enter") insert(event, `\n${line.match(/^ */)[0]}${line.trimEnd().endsWith(":") ? "    " : ""}`);
    leaving = event.key === "Escape";
  });
}
