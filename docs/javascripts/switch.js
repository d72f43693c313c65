// The switch between the languages keeps the place on the page: headings have the same ids in both.
document.querySelector("a.tongue")?.addEventListener("click", ({ currentTarget }) => (currentTarget.hash = location.hash));
