// SPDX-License-Identifier: Apache-2.0
//! What an image was made of: the manifest and the bill of materials that lie beside it.

use std::path::Path;

use guest_kernel::Kernel;
use serde::Serialize;

use super::image::Work;
use super::inputs::{self, Inputs};
use super::words::boots;
use super::{BuildError, io_error};
use crate::assemble::Root;
use crate::definition::{FileContent, Format};
use crate::image::verity::Verity;
use crate::manifest::{self, Contents, ImageFile, Input, InputKind, Manifest, Tool};
use crate::sbom;
use crate::toolchain;
use crate::tree::Tree;

/// The crates that the guest binary is made of.
const LOCK_FILE: &str = "Cargo.lock";
/// Where an extension says what its processes are.
const COMPONENTS: &str = "etc/kata-extensions/components.toml";

/// The part of a manifest that is known before the image is written.
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    work: Work<'a>,
    inputs: Vec<Input>,
    kernel: Option<manifest::Kernel>,
}

/// Digests all that goes in.
pub fn draft<'a>(work: &Work<'a>, root: &Root, inputs: &Inputs) -> Result<Draft<'a>, BuildError> {
    let mut list = Vec::new();
    if let Some(binary) = &inputs.binary {
        let input = Input::file(InputKind::Binary, "keelson", binary)?;
        list.push(match inputs::is_built_here(work.definition) {
            true => input.version(env!("CARGO_PKG_VERSION")),
            false => input,
        });
    }
    if let Some((name, tree)) = &root.base {
        list.push(Input::tree(InputKind::Base, name, tree)?);
    }
    let kernel = match &inputs.kernel {
        Some(kernel) => {
            list.extend(kernel_inputs(kernel)?);
            Some(manifest::Kernel::of(kernel)?)
        }
        None => None,
    };
    for file in &work.definition.files {
        let name = file.target.to_string_lossy();
        match &file.what {
            FileContent::Text(text) => {
                list.push(Input::bytes(InputKind::File, &name, text.as_bytes()));
            }
            FileContent::Source(path) if path.is_dir() => {
                let tree = Tree::from_dir(path, false)?;
                list.push(Input::tree(InputKind::File, &name, &tree)?);
            }
            FileContent::Source(path) => list.push(Input::file(InputKind::File, &name, path)?),
            FileContent::Link(_) => {}
        }
    }
    Ok(Draft {
        work: *work,
        inputs: list,
        kernel,
    })
}

fn kernel_inputs(kernel: &Kernel) -> Result<Vec<Input>, BuildError> {
    let release = &kernel.release;
    let mut inputs =
        vec![Input::file(InputKind::Kernel, "kernel", &kernel.image)?.version(release)];
    for module in &kernel.modules {
        let name = module.path.file_name().unwrap_or_default();
        let input = Input::file(InputKind::Module, &name.to_string_lossy(), &module.path)?;
        inputs.push(input.version(release));
    }
    Ok(inputs)
}

#[derive(Serialize)]
struct Known<'a> {
    name: &'a str,
    profile: Option<String>,
    words: &'a [String],
    inputs: &'a [Input],
    kernel: &'a Option<manifest::Kernel>,
}

impl Draft<'_> {
    /// All of it as text, for the digest of what an image is made of.
    pub fn text(&self) -> Result<String, BuildError> {
        let definition = self.work.definition;
        let known = Known {
            name: &definition.name,
            profile: definition.profile.map(|profile| profile.to_string()),
            words: &definition.words,
            inputs: &self.inputs,
            kernel: &self.kernel,
        };
        serde_json::to_string(&known).map_err(|error| {
            let place = Path::new("the manifest");
            io_error("write", place)(error.into())
        })
    }

    /// What should be known of the image and is no error.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let extension = self.work.definition.format == Format::Extension;
        if extension && self.work.tree.get(COMPONENTS).is_none() {
            notes.push(format!(
                "the extension has no {COMPONENTS}: a guest that mounts one without it powers off"
            ));
        }
        notes
    }

    /// The whole manifest of the image `file` in `dir`.
    pub fn complete(
        &self,
        verity: Option<&Verity>,
        dir: &Path,
        file: &str,
    ) -> Result<Manifest, BuildError> {
        let (definition, tree) = (self.work.definition, self.work.tree);
        let contents = Contents::of(tree)?;
        let image = match definition.format.is_directory() {
            true => ImageFile::directory(file, &contents),
            false => ImageFile::of(&dir.join(file))?,
        };
        let boots = boots(definition, verity);
        let words = boots.into_iter().next().map(|boot| boot.words);
        Ok(Manifest {
            schema: manifest::SCHEMA,
            name: definition.name.clone(),
            tool: Tool::this(),
            arch: definition.arch.to_string(),
            profile: definition.profile.map(|profile| profile.to_string()),
            format: definition.format.to_string(),
            filesystem: definition.root_filesystem().map(|name| name.to_string()),
            epoch: self.work.mtime.into(),
            image,
            verity: verity.cloned(),
            kernel_words: words.unwrap_or_default(),
            kernel: self.kernel.clone(),
            inputs: self.inputs.clone(),
            packages: manifest::packages(tree)?,
            tree: contents,
        })
    }
}

/// Writes manifest and bill of materials beside an image.
pub fn write(manifest: &Manifest, tree: &Tree, image: &Path) -> Result<(), BuildError> {
    manifest.write(&Manifest::path_for(image))?;
    let lock = lock_file(manifest);
    let document = sbom::document(manifest, tree, lock.as_deref())?;
    Ok(sbom::write(&document, &sbom::path_for(image))?)
}

/// The crates of a guest binary that was built here; those of another are not known.
fn lock_file(manifest: &Manifest) -> Option<String> {
    let binary = manifest.inputs.iter();
    let mut binary = binary.filter(|input| input.kind == InputKind::Binary);
    binary.next()?.version.as_ref()?;
    let workspace = toolchain::workspace().ok()?;
    std::fs::read_to_string(workspace.join(LOCK_FILE)).ok()
}
