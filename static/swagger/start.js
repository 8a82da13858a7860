// Starts Swagger UI; a file of its own, so that no page needs an inline script. The page keeps the token.
const token = sessionStorage.getItem("API_TOKEN");
const bearer = token && String.fromCharCode(...new TextEncoder().encode(token)); // a character for each byte

const ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  validatorUrl: null,
  onComplete: () => bearer && ui.preauthorizeApiKey("token", bearer),
});
