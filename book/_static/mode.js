document.documentElement.dataset.mode ||= "auto"; // else the theme logs an error on the first visit
