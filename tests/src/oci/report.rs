// SPDX-License-Identifier: Apache-2.0
//! The log file that container managers read errors from.

use std::fs::File;
use std::io::Write;

use crate::cli::{LogFormat, Options};

pub fn log(options: &Options, text: &str) {
    let Some(path) = &options.log else {
        return;
    };
    let line = match options.log_format {
        LogFormat::Text => format!("level=error msg={text:?}\n"),
        LogFormat::Json => format!("{}\n", serde_json::json!({ "level": "error", "msg": text })),
    };
    let file = File::options().create(true).append(true).open(path);
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        eprintln!("warning: {}: {error}", path.display());
    }
}
