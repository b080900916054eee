export default function (input) {
  return { hello: input.name, length: input.name.length };
}
