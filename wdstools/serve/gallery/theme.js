// Before anything is painted: dark or light, as chosen here before, else as the system has it.
"use strict";
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("wds-theme"); } catch { /* storage is forbidden: the system decides */ }
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  const label = () => {
    const button = document.getElementById("theme");
    if (button) button.textContent = isDark() ? "Light" : "Dark";
  };
  window.wdsToggleTheme = () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("wds-theme", root.dataset.theme); } catch { /* until the page is left, then */ }
    label();
  };
  system.addEventListener("change", label);
  document.addEventListener("DOMContentLoaded", label);
})();
