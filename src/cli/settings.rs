//! From arguments to the configuration: finds the file, gathers the layers, calls the pure loader.

use std::io::ErrorKind;
use std::path::Path;

use super::args::{ConfigArgs, ModelArgs, ServeArgs};
use super::{Exit, Failure};
use crate::base::config::{self, Config, Flag};

/// Read when no `--config` is given and it exists.
const DEFAULT_FILE: &str = "config.yaml";

impl ServeArgs {
    /// The whole configuration of a server.
    pub fn load(&self) -> Result<Config, Failure> {
        let mut flags = self.model.flags();
        flags.extend(flag("--listen", "server.listen", &self.listen));
        self.config.load(&flags)
    }
}

impl ModelArgs {
    /// The options that were given, as settings.
    pub fn flags(&self) -> Vec<Flag> {
        [
            flag("--model", "model.path", &self.model),
            flag("--served-model-name", "model.served_name", &self.served_model_name),
            flag("--max-model-len", "model.max_model_len", &self.max_model_len),
            flag("--device", "engine.device", &self.device),
            flag("--lanes", "engine.lanes", &self.lanes),
            flag("--threads", "engine.threads", &self.threads),
            flag("--weights", "engine.weights", &self.weights),
            flag("--compute", "engine.compute", &self.compute),
            flag("--kv-memory", "kv.memory", &self.kv_memory),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl ConfigArgs {
    /// Reads the file and the environment, and puts `flags` over everything.
    pub fn load(&self, flags: &[Flag]) -> Result<Config, Failure> {
        // A variable that is not UTF-8 cannot be one of ours but by mistake; then its text shows where it is broken.
        let env = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
        let path = self.config.as_deref();
        let text = read(path.unwrap_or(Path::new(DEFAULT_FILE)), path.is_some())?;
        let name = path.map_or(DEFAULT_FILE.into(), |p| p.display().to_string());
        config::load(text.as_deref().map(|text| (name.as_str(), text)), env, &self.set, flags)
            .map_err(|e| Failure::new(Exit::Usage, format!("the configuration is wrong\n{e}")))
    }
}

/// The text of a file; none when it is missing and need not be there.
fn read(path: &Path, required: bool) -> Result<Option<String>, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound && !required => Ok(None),
        Err(e) => Err(Failure::new(Exit::Usage, format!("cannot read the configuration {}: {e}", path.display()))),
    }
}

fn flag(name: &'static str, path: &'static str, value: &Option<String>) -> Option<Flag> {
    value.as_ref().map(|value| Flag { name, path, value: value.clone() })
}
