// Sorts and filters each gallery of the page. Without it, all prompts are shown, those that differ most first.
for (const gallery of document.querySelectorAll(".gallery")) {
  const form = gallery.querySelector("form");
  const list = gallery.querySelector(".pairs");
  const all = [...list.children].map((article) => ({
    article,
    place: Number(article.dataset.place),
    task: article.dataset.task,
    text: article.querySelector("h4").textContent.toLowerCase(),
    spreads: JSON.parse(article.dataset.spreads),
  }));
  const value = (name) => form.elements[name]?.value ?? "";

  const show = () => {
    const words = value("text").toLowerCase().split(/\s+/);
    const differ = form.elements.differ?.checked;
    const sort = value("sort");
    let shown = 0;
    for (const each of all) {
      const wanted =
        (!value("task") || each.task === value("task")) &&
        words.every((word) => each.text.includes(word)) &&
        (!differ || each.spreads[0] > 0);
      each.article.hidden = !wanted;
      shown += wanted;
    }
    const apart = (each) => (sort === "place" ? 0 : each.spreads[Number(sort)]);
    all.sort((a, b) => apart(b) - apart(a) || a.place - b.place);
    list.append(...all.map((each) => each.article));
    form.querySelector("output").textContent = `${shown} of ${all.length} prompts`;
  };

  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
}
