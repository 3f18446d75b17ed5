// Without this the theme logs an error on the first visit.
document.documentElement.dataset.mode ||= "auto";

// Dark twins of figures follow the theme's button instead of the system.
function twins() {
  const dark = document.documentElement.dataset.theme === "dark";
  for (const source of document.querySelectorAll("picture > source")) {
    source.media = dark ? "screen" : "not all";
  }
}
new MutationObserver(twins).observe(document.documentElement, { attributeFilter: ["data-theme"] });
document.addEventListener("DOMContentLoaded", twins);
