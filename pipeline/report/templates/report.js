"use strict";
const root = document.documentElement;
const theme = document.getElementById("theme");
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.setAttribute("aria-label", "Change between light and dark");
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
systemDark.addEventListener("change", nameTheme);
nameTheme();
theme.hidden = false;

const form = document.getElementById("filters");
const cards = [...document.querySelectorAll(".card")];
const has = (text, part) => text.toLowerCase().includes(part.trim().toLowerCase());
function filter() {
  const { name, word, role, status, count } = form.elements;
  document.body.dataset.role = role.value;
  let shown = 0;
  for (const card of cards) {
    const roles = role.value ? [role.value] : ["lr", "hr"];
    const words = roles.flatMap((one) => card.dataset[one].split("|"));
    const fits = has(card.dataset.name, name.value)
      && (!word.value.trim() || words.some((one) => has(one, word.value)))
      && (!role.value || roles.some((one) => card.dataset[one]))
      && (!status.value || card.dataset.status === status.value);
    card.hidden = !fits;
    shown += fits;
  }
  count.value = `${shown} of ${cards.length} shown`;
}
form.addEventListener("input", filter);
form.addEventListener("reset", () => setTimeout(filter));
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
filter();
