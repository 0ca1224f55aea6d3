//! Opening what the configuration names: checkpoints, their tokenizers, and one engine for all of them. In: a [`Config`]. Out: what
//! `serve` serves and `verify` checks.

use anyhow::bail;

use crate::config::{Config, ModelSettings};
use crate::engine::{Checkpoint, Engine, EngineInfo, Fingerprint, Models};
use crate::model::Task;
use crate::processor::{Processor, pair_template};
use crate::service::Proof;

/// A model, loaded.
pub(super) struct LoadedModel {
    /// What clients may call it, the echoed name first.
    pub served_names: Vec<String>,
    pub settings: ModelSettings,
    pub checkpoint: Checkpoint,
    pub processor: Processor,
    pub info: EngineInfo,
    pub proof: Proof,
}

/// All models, and the engine that computes them.
pub(super) struct Loading {
    pub embedder: Option<LoadedModel>,
    pub reranker: Option<LoadedModel>,
    pub engine: Engine,
}

/// A checkpoint whose text files are read.
struct Opened {
    settings: ModelSettings,
    checkpoint: Checkpoint,
    processor: Processor,
}

/// Opens the checkpoints, reads their tokenizers and starts the engine; blocks for as long as that takes.
pub(super) fn load(config: &Config) -> anyhow::Result<Loading> {
    let embedder = match config.embeds {
        true => Some(open(&config.model)?),
        false => None,
    };
    let reranker = config.reranker.as_ref().map(open).transpose()?;
    let answers = reranker.as_ref().map(|it| it.processor.answer_ids());
    let answers = answers.transpose()?;
    let models = Models {
        embedder: embedder.as_ref().map(|it| &it.checkpoint),
        reranker: reranker.as_ref().map(|it| &it.checkpoint).zip(answers),
    };
    let engine = Engine::start_with(models, config.engine)?;
    let finished = |opened: Option<Opened>, task| {
        let info = engine.info(task).cloned();
        let both = opened.zip(info);
        both.map(|(opened, info)| opened.finish(config, task, info))
    };
    let loading = Loading {
        embedder: finished(embedder, Task::Embed),
        reranker: finished(reranker, Task::Rerank),
        engine,
    };
    check_names(&loading)?;
    Ok(loading)
}

fn open(settings: &ModelSettings) -> anyhow::Result<Opened> {
    let checkpoint = Checkpoint::open(&settings.source)?;
    let config = checkpoint.model_config()?;
    Ok(Opened {
        settings: settings.clone(),
        processor: Processor::new(&checkpoint.tokenizer_json, (&config).into())?,
        checkpoint,
    })
}

impl Opened {
    fn finish(self, config: &Config, task: Task, info: EngineInfo) -> LoadedModel {
        let (template, own_name) = match task {
            Task::Embed => (self.processor.template_text(), self.checkpoint.name.clone()),
            // The embedded model can be both, and a name must say which is meant.
            Task::Rerank => match self.checkpoint.name.as_str() {
                crate::engine::EMBEDDED_NAME => (
                    pair_template(),
                    format!("{}-reranker", self.checkpoint.name),
                ),
                name => (pair_template(), name.to_owned()),
            },
        };
        let fingerprint = Fingerprint::of(&self.checkpoint);
        LoadedModel {
            served_names: match self.settings.served_names.as_slice() {
                [] => vec![own_name],
                names => names.to_vec(),
            },
            proof: Proof::new(fingerprint, template, &config.pixels, &info),
            settings: self.settings,
            checkpoint: self.checkpoint,
            processor: self.processor,
            info,
        }
    }
}

/// Names say which model is meant; the settings' own are checked before, those of checkpoints are known only now.
fn check_names(loading: &Loading) -> anyhow::Result<()> {
    let (Some(embedder), Some(reranker)) = (&loading.embedder, &loading.reranker) else {
        return Ok(());
    };
    let same = |name: &&String| reranker.served_names.contains(name);
    match embedder.served_names.iter().find(same) {
        Some(name) => bail!(
            "both models would be called {name:?}: set model.served_names or reranker.served_names"
        ),
        None => Ok(()),
    }
}
