//! `--admission-control-config-file`: what plug-ins are configured with, by their names
//! (<https://kubernetes.io/docs/reference/config-api/apiserver-config.v1/>).

use std::collections::BTreeMap;
use std::path::Path;

use pilothouse_apimachinery::json::Value;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    plugins: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    /// Of a file, from the directory of this one on.
    #[serde(default)]
    path: String,
    #[serde(default)]
    configuration: Value,
}

/// Plug-ins' configurations.
#[derive(Debug, Default)]
pub struct Configuration(BTreeMap<String, Value>);

fn read(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|e| {
        format!("unable to read admission control configuration from {:?} [{e}]", file.display().to_string())
    })
}

impl Configuration {
    /// Reads the file, and those that it names.
    pub fn load(file: &Path) -> Result<Configuration, String> {
        let text = read(file)?;
        let fault =
            |e: &dyn std::fmt::Display| format!("admission control configuration {}: {e}", file.display());
        let parsed: File = serde_yaml_ng::from_str(&text).map_err(|e| fault(&e))?;
        let known = parsed.kind == "AdmissionConfiguration"
            && matches!(
                parsed.api_version.as_str(),
                "apiserver.config.k8s.io/v1" | "apiserver.k8s.io/v1alpha1"
            );
        if !known {
            return Err(fault(&format!(
                "no kind {:?} is registered for version {:?}",
                parsed.kind, parsed.api_version
            )));
        }
        let mut all = BTreeMap::new();
        for entry in parsed.plugins {
            let mut configuration = entry.configuration;
            if !entry.path.is_empty() {
                let path = file.parent().unwrap_or(Path::new("")).join(&entry.path);
                configuration = serde_yaml_ng::from_str(&read(&path)?).map_err(|e| fault(&e))?;
            }
            all.insert(entry.name, configuration);
        }
        Ok(Configuration(all))
    }

    /// What a plug-in is configured with; nothing where it is not.
    pub fn of(&self, plugin: &str) -> &Value {
        self.0.get(plugin).unwrap_or(&Value::Null)
    }

    #[cfg(test)]
    pub(crate) fn for_test(plugin: &str, configuration: Value) -> Configuration {
        Configuration(BTreeMap::from([(plugin.to_string(), configuration)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_name_files() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("admission.yaml");
        std::fs::write(dir.path().join("events.yaml"), "kind: Configuration\nlimits: [{type: Server}]\n")
            .unwrap();
        let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n- {name: EventRateLimit, path: events.yaml}\n- name: Other\n  configuration: {a: 1}\n";
        std::fs::write(&main, text).unwrap();
        let c = Configuration::load(&main).unwrap();
        assert_eq!(c.of("EventRateLimit")["limits"][0]["type"], "Server");
        assert_eq!(c.of("Other")["a"], 1);
        assert!(c.of("Nobody").is_null());
        std::fs::write(&main, "kind: Nope\n").unwrap();
        assert!(Configuration::load(&main).unwrap_err().contains("no kind \"Nope\""));
        assert!(Configuration::load(Path::new("/nowhere")).unwrap_err().contains("unable to read"));
    }
}
