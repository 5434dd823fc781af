// SPDX-License-Identifier: Apache-2.0

//! Generates messages and ttrpc stubs from `proto/*.proto` into `OUT_DIR`, in pure Rust: no `protoc` is needed.

use std::{env, fmt::Write as _, fs, io, path::Path};
use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

/// Files of `proto/` by stem, and whether they define services.
/// Each becomes a module of messages; one with services a second module `…_ttrpc`.
const PROTOS: [(&str, bool); 6] = [
    ("agent", true),
    ("confidential_data_hub", true),
    ("csi", false),
    ("health", true),
    ("oci", false),
    ("types", false),
];

fn main() -> io::Result<()> {
    let out_dir = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?;
    let inputs: Vec<String> = PROTOS
        .iter()
        .map(|(stem, _)| format!("proto/{stem}.proto"))
        .collect();
    for input in &inputs {
        println!("cargo:rerun-if-changed={input}");
    }
    Codegen::new()
        .out_dir(&out_dir)
        .include("proto")
        .inputs(&inputs)
        .rust_protobuf()
        .rust_protobuf_customize(
            ProtobufCustomize::default()
                // Nothing here uses descriptors, reflection or text formats. Fat LTO drops them anyway, to the
                // byte; without them no use can slip into the guest binary, and the crate builds faster.
                .lite_runtime(true)
                // Fields are public; accessors would only add code.
                .generate_accessors(false)
                .generate_getter(false),
        )
        .customize(Customize {
            async_all: true,
            ..Default::default()
        })
        .run()?;
    write_index(Path::new(&out_dir))
}

/// Writes `modules.rs`, which declares the generated modules. The generator's own index starts with
/// an inner attribute and so cannot be included.
fn write_index(out_dir: &Path) -> io::Result<()> {
    let mut index = String::new();
    for (stem, services) in PROTOS {
        let _ = writeln!(index, "pub mod {stem};");
        if services {
            let _ = writeln!(index, "pub mod {stem}_ttrpc;");
        }
    }
    fs::write(out_dir.join("modules.rs"), index)
}
