// The same function as perf/bare/hello.js, as workerd takes it.
function main(input) {
  return { hello: input.name, length: input.name.length };
}
export default {
  async fetch(request) {
    return Response.json(main(await request.json()));
  },
};
