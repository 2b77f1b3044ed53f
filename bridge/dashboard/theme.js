// Light or dark: what the system prefers, unless the button says otherwise. Loaded before the page is painted.
{
  const NEXT = { auto: "light", light: "dark", dark: "auto" };
  const root = document.documentElement;

  const kept = () => {
    try {
      return localStorage.getItem("sidecar-theme");
    } catch {
      return null; // storage may be forbidden, and then the choice lasts as long as the page
    }
  };
  const keep = (theme) => {
    try {
      localStorage.setItem("sidecar-theme", theme);
    } catch {
      return;
    }
  };
  const show = (theme) => {
    root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${theme}`;
    document.dispatchEvent(new Event("themechange"));
  };

  root.dataset.theme = kept() in NEXT ? kept() : "auto";
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(root.dataset.theme));
  document.addEventListener("DOMContentLoaded", () => {
    show(root.dataset.theme);
    document.getElementById("theme").addEventListener("click", () => {
      keep(NEXT[root.dataset.theme]);
      show(NEXT[root.dataset.theme]);
    });
  });
}
