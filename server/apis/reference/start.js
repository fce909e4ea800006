/* Shows the server's OpenAPI document. The addresses are relative, so that a proxy may serve all of it under a path. */
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
