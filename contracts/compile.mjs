// Compiles FederatedLearning.sol into FederatedLearning.json, the artifact that fl-node deploys.
//
//   node compile.mjs          write the artifact
//   node compile.mjs --check  exit with 1 if the artifact is not what the source compiles to

import { readFileSync, writeFileSync } from "node:fs";
import solc from "solc";

const NAME = "FederatedLearning";
const SOURCE = new URL(`./${NAME}.sol`, import.meta.url);
const ARTIFACT = new URL(`./${NAME}.json`, import.meta.url);

const SETTINGS = {
  // Clique, which seals the testbed's blocks, refuses every fork after London.
  evmVersion: "london",
  optimizer: { enabled: true, runs: 200 },
  // Without these the bytecode ends in a hash of the source's comments and name.
  metadata: { appendCBOR: false, bytecodeHash: "none" },
  outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode", "userdoc", "devdoc"] } },
};

/** Prints one line for a person and ends. */
function fail(reason) {
  console.error(`${NAME}: ${reason}`);
  process.exit(1);
}

/** The same value with the keys of every object sorted, so that equal content is equal text. */
function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(
    Object.keys(value)
      .sort()
      .map((key) => [key, sorted(value[key])]),
  );
}

function compile() {
  const unit = `${NAME}.sol`; // not a path: the artifact must not depend on where the checkout is
  const input = {
    language: "Solidity",
    sources: { [unit]: { content: readFileSync(SOURCE, "utf8") } },
    settings: SETTINGS,
  };
  const output = JSON.parse(solc.compile(JSON.stringify(input)));
  if (output.errors?.length) fail(output.errors.map((error) => error.formattedMessage).join("\n"));

  const contract = output.contracts[unit][NAME];
  const { evmVersion, optimizer, metadata } = SETTINGS;
  const artifact = {
    contractName: NAME,
    compiler: { name: "solc", version: solc.version(), settings: { evmVersion, optimizer, metadata } },
    abi: sorted(contract.abi),
    bytecode: `0x${contract.evm.bytecode.object}`,
    // What stands on chain: equal but for the immutable values, which are zeros here.
    deployedBytecode: `0x${contract.evm.deployedBytecode.object}`,
    immutableReferences: Object.values(contract.evm.deployedBytecode.immutableReferences)
      .flat()
      .sort((one, other) => one.start - other.start),
    userdoc: sorted(contract.userdoc),
    devdoc: sorted(contract.devdoc),
  };
  return `${JSON.stringify(artifact, null, 2)}\n`;
}

function committed() {
  try {
    return readFileSync(ARTIFACT, "utf8");
  } catch (error) {
    if (error.code === "ENOENT") return null;
    throw error;
  }
}

const args = process.argv.slice(2);
if (args.some((arg) => arg !== "--check")) fail("the only option is --check");

const fresh = compile();
if (!args.includes("--check")) {
  writeFileSync(ARTIFACT, fresh);
} else if (committed() !== fresh) {
  fail(`${NAME}.json is not what ${NAME}.sol compiles to; run \`node contracts/compile.mjs\` and commit it`);
}
