// Before the first paint: light or dark as Airflow's UI around this page is, else as its viewer chose there,
// else as the system is.
"use strict";
{
  const system = matchMedia("(prefers-color-scheme: dark)");

  const around = () => {
    try {
      return window.parent === window ? null : window.parent.document.documentElement;
    } catch {
      return null;
    }
  };

  const theme = () => {
    for (const name of ["dark", "light"]) {
      if (around()?.classList.contains(name)) return name;
    }
    let chosen = null;
    try {
      chosen = localStorage.getItem("theme");
    } catch {
      // A browser without storage for us: the system decides.
    }
    return chosen === "dark" || chosen === "light" ? chosen : system.matches ? "dark" : "light";
  };

  const apply = () => document.documentElement.setAttribute("data-theme", theme());
  apply();
  system.addEventListener("change", apply);
  addEventListener("storage", apply);
  const root = around();
  if (root) new MutationObserver(apply).observe(root, { attributeFilter: ["class"] });
}
