// Starts Swagger UI, in its own file because we allow no inline scripts. The live page keeps the token.
const token = sessionStorage.getItem("API_TOKEN");
const bearer = token && String.fromCharCode(...new TextEncoder().encode(token)); // one character per byte

const ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  validatorUrl: null,
  onComplete: () => bearer && ui.preauthorizeApiKey("token", bearer),
});
