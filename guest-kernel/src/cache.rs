// SPDX-License-Identifier: Apache-2.0
//! The tools' cache directory: results keyed by the digest of what they were made from.
//!
//! An entry appears under its final name only when complete (made under a temporary name, then renamed), and a lock file per entry
//! keeps two processes from making the same one. Nothing here knows what an entry holds.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// What can go wrong with the cache directory itself.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// None of the variables that say where the cache lies is set.
    #[error("No place for the cache: none of KEELSON_CACHE, XDG_CACHE_HOME and HOME is set")]
    NoPlace,
    /// A file operation failed.
    #[error("Cache: cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    move |source| CacheError::Io {
        action,
        path,
        source,
    }
}

/// The cache directory.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's cache: `$KEELSON_CACHE`, else `$XDG_CACHE_HOME/keelson`, else `~/.cache/keelson`. Relative values of the
    /// latter two are ignored, as the XDG base directory specification asks.
    pub fn open() -> Result<Cache, CacheError> {
        let var = |name| std::env::var_os(name).map(PathBuf::from);
        Self::choose(var("KEELSON_CACHE"), var("XDG_CACHE_HOME"), var("HOME"))
            .ok_or(CacheError::NoPlace)
            .and_then(|root| {
                let root = std::path::absolute(&root).map_err(io_error("resolve", &root))?;
                Self::at(root)
            })
    }

    fn choose(
        own: Option<PathBuf>,
        xdg: Option<PathBuf>,
        home: Option<PathBuf>,
    ) -> Option<PathBuf> {
        let set = |path: &PathBuf| !path.as_os_str().is_empty();
        own.filter(set)
            .or_else(|| xdg.filter(|p| p.is_absolute()).map(|p| p.join("keelson")))
            .or_else(|| {
                home.filter(|p| p.is_absolute())
                    .map(|p| p.join(".cache/keelson"))
            })
    }

    /// A cache at a given directory, made if it is not there.
    pub fn at(root: impl Into<PathBuf>) -> Result<Cache, CacheError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(io_error("create", &root))?;
        Ok(Cache { root })
    }

    /// The cache's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory inside the cache that is not an entry (tools, working trees), made if it is not there.
    pub fn dir(&self, name: &str) -> Result<PathBuf, CacheError> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        Ok(path)
    }

    /// Where the entry of `kind` with this key lies, present or not.
    pub fn path_of(&self, kind: &str, key: &Key) -> PathBuf {
        self.root.join(kind).join(key.name())
    }

    /// The entry that [`Cache::set_current`] last named as the present answer to `recipe`, if it is still there. It lets a second
    /// run go without asking anyone what the newest version is.
    pub fn current(&self, kind: &str, recipe: &Key) -> Option<PathBuf> {
        let dir = self.root.join(kind);
        let name = fs::read_to_string(dir.join(format!("{}.current", recipe.name()))).ok()?;
        let name = name.trim();
        // The file names a directory beside it, and nothing else.
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return None;
        }
        Some(dir.join(name)).filter(|entry| entry.is_dir())
    }

    /// Names the entry that is the present answer to `recipe`.
    pub fn set_current(&self, kind: &str, recipe: &Key, entry: &Key) -> Result<(), CacheError> {
        let path = self.dir(kind)?.join(format!("{}.current", recipe.name()));
        fs::write(&path, entry.name()).map_err(io_error("write", &path))
    }

    /// Takes an exclusive lock named `name`, waiting for whoever holds it. It is let go when the guard is dropped.
    pub fn lock(&self, name: &str) -> Result<Lock, CacheError> {
        let path = self.dir("locks")?.join(format!("{name}.lock"));
        let file = File::create(&path).map_err(io_error("create", &path))?;
        file.lock().map_err(io_error("lock", &path))?;
        Ok(Lock { _file: file })
    }

    /// The directory of the entry `key` of `kind`: what is there, or else what `fill` puts into the empty directory it is given.
    ///
    /// The directory given to `fill` is renamed afterwards, so nothing made in it may hold its own absolute path.
    pub fn entry<E: From<CacheError>>(
        &self,
        kind: &str,
        key: &Key,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let path = self.path_of(kind, key);
        if path.is_dir() {
            return Ok(path);
        }
        let _lock = self.lock(&format!("{kind}-{}", key.name()))?;
        if path.is_dir() {
            return Ok(path);
        }
        let partial = self.dir(kind)?.join(format!(".{}.partial", key.name()));
        remove_tree(&partial)?;
        fs::create_dir(&partial).map_err(io_error("create", &partial))?;
        fill(&partial).inspect_err(|_| {
            // The first error is the one to report; what is left is cleared by the next attempt.
            let _ = remove_tree(&partial);
        })?;
        fs::rename(&partial, &path).map_err(io_error("rename", &partial))?;
        Ok(path)
    }
}

/// Removes a directory tree, if it exists. Links in it are removed, not followed.
pub fn remove_tree(path: &Path) -> Result<(), CacheError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(CacheError::Io {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
    }
}

/// A held lock; see [`Cache::lock`].
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The name of a cache entry: a label for people and the digest of every input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    label: String,
    digest: String,
}

impl Key {
    /// Begins a key. `label` is for people who look into the cache.
    pub fn of(label: &str) -> KeyBuilder {
        KeyBuilder {
            label: label
                .chars()
                .map(|c| {
                    if c.is_ascii_alphanumeric() || "._-".contains(c) {
                        c
                    } else {
                        '_'
                    }
                })
                .collect(),
            hash: Sha256::new(),
        }
    }

    /// The entry's file name.
    pub fn name(&self) -> String {
        format!("{}-{}", self.label, &self.digest[..16])
    }

    /// The whole digest, 64 hexadecimal digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

/// Collects the inputs of a [`Key`].
#[derive(Clone, Debug)]
pub struct KeyBuilder {
    label: String,
    hash: Sha256,
}

impl KeyBuilder {
    /// Adds a named input. Name and value are length-prefixed, so that no two lists of inputs run together.
    pub fn field(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        for part in [name.as_bytes(), value.as_ref()] {
            self.hash.update((part.len() as u64).to_le_bytes());
            self.hash.update(part);
        }
        self
    }

    /// Adds a file's content as an input.
    pub fn file(self, name: &str, path: &Path) -> Result<Self, CacheError> {
        let digest = file_digest(path)?;
        Ok(self.field(name, digest))
    }

    /// The finished key.
    pub fn finish(self) -> Key {
        Key {
            label: self.label,
            digest: hex(&self.hash.finalize()),
        }
    }
}

/// The SHA-256 of a file's content, as 64 hexadecimal digits.
pub fn file_digest(path: &Path) -> Result<String, CacheError> {
    let mut file = File::open(path).map_err(io_error("open", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(io_error("read", path))? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n)]);
    bytes
        .iter()
        .flat_map(|b| [digit(b >> 4), digit(b & 15)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_follows_the_variables() {
        let path = |s: &str| Some(PathBuf::from(s));
        assert_eq!(
            Cache::choose(path("/a"), path("/b"), path("/c")),
            path("/a")
        );
        assert_eq!(
            Cache::choose(path(""), path("/b"), path("/c")),
            path("/b/keelson")
        );
        assert_eq!(
            Cache::choose(None, path("rel"), path("/c")),
            path("/c/.cache/keelson")
        );
        assert_eq!(Cache::choose(None, None, None), None);
    }

    #[test]
    fn an_entry_is_made_once_and_only_when_complete() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let key = Key::of("thing").field("a", "1").finish();
        let failed: Result<_, CacheError> = cache.entry("k", &key, |p| {
            fs::write(p.join("half"), "").unwrap();
            Err(CacheError::NoPlace)
        });
        assert!(failed.is_err());
        assert!(!cache.path_of("k", &key).exists());
        let made = cache
            .entry("k", &key, |p| {
                fs::write(p.join("f"), "x").map_err(io_error("write", p))
            })
            .unwrap();
        assert!(!made.join("half").exists());
        let again = cache
            .entry("k", &key, |_| Err(CacheError::NoPlace))
            .unwrap();
        assert_eq!(fs::read_to_string(again.join("f")).unwrap(), "x");
    }

    #[test]
    fn the_current_entry_is_one_that_exists() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let (recipe, key) = (Key::of("recipe").finish(), Key::of("entry").finish());
        assert_eq!(cache.current("k", &recipe), None);
        cache.set_current("k", &recipe, &key).unwrap();
        assert_eq!(cache.current("k", &recipe), None);
        let made = cache.entry("k", &key, |_| Ok::<_, CacheError>(())).unwrap();
        assert_eq!(cache.current("k", &recipe), Some(made));
    }

    #[test]
    fn inputs_do_not_run_together() {
        let one = Key::of("k").field("ab", "c").finish();
        let two = Key::of("k").field("a", "bc").finish();
        assert_ne!(one, two);
        assert_eq!(one.digest().len(), 64);
        assert_eq!(Key::of("a/b c").finish().name()[..6], *"a_b_c-");
    }

    #[test]
    fn digests_are_sha256() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(file_digest(&path).unwrap(), expected);
    }
}
