// SPDX-License-Identifier: Apache-2.0
//! `erofs.multi-layer`: several storages of one request that make one file
//! system (protocol 5.7): read-only EROFS layers, each a disk or a partition of
//! one, verified or not, and an upper layer that takes the changes. Owns the
//! grouping, and the order in which the parts come and go.

mod verity;
mod words;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use nix::mount::MsFlags;

use self::verity::LayerVerity;
use self::words::{Directory, Side, Words};
use super::mount::{MountSpec, make_dir, open_target};
use super::plan::{Action, Claim, Ready};
use super::undo::Undo;
use super::{Environment, StorageError, block};
use crate::device::{BlockDevice, DiskAddress};
use crate::mount_options::MountOptions;

/// The driver whose storages are layers whatever their options say.
pub(super) const DRIVER: &str = "erofs.multi-layer";
/// The option that makes a storage of another driver a layer.
pub(super) const MARK: &str = "X-kata.multi-layer=true";

/// overlayfs takes 500 lower layers; no image has that many.
const MOST_LAYERS: usize = 128;
/// What mount(2) takes.
const LONGEST: usize = 4095;

/// Where a layer's data is.
#[derive(Debug)]
struct Place {
    disk: DiskAddress,
    partition: Option<u32>,
}

#[derive(Debug)]
struct Lower {
    place: Place,
    verity: Option<LayerVerity>,
}

#[derive(Debug)]
struct Upper {
    place: Place,
    spec: MountSpec,
}

/// The parts of one file system.
#[derive(Debug)]
pub(super) struct Layers {
    /// Topmost first.
    lowers: Vec<Lower>,
    upper: Option<Upper>,
    directories: Vec<Directory>,
    /// Where the parts are mounted.
    base: PathBuf,
}

impl Layers {
    /// Checks the layers of a request and says where the whole will be.
    pub(super) fn plan(
        claims: &[Claim<'_>],
        bundle: Option<&Path>,
    ) -> Result<(PathBuf, Self), StorageError> {
        let mut layers = Self {
            lowers: Vec::new(),
            upper: None,
            directories: Vec::new(),
            base: bundle
                .unwrap_or(Path::new("/run/kata-containers/sandbox"))
                .join("multi-layer"),
        };
        let (mut target, mut first_lower) = (None, None);
        for claim in claims {
            let words = Words::read(claim)?;
            layers.directories.extend(words.directories.iter().cloned());
            match side(claim, &words)? {
                Side::Upper => {
                    target = Some(claim.mount_point.clone());
                    layers.add_upper(claim, &words)?;
                }
                Side::Lower => {
                    first_lower.get_or_insert(claim.mount_point.clone());
                    layers.add_lower(claim, words)?;
                }
            }
        }
        if let [first, ..] = claims
            && (layers.lowers.is_empty() || layers.lowers.len() > MOST_LAYERS)
        {
            let count = layers.lowers.len().to_string();
            return Err(first.refuse("options", &count, "that is no number of lower layers"));
        }
        // Partitions are in the order of the layers; others are as they were sent.
        layers.lowers.sort_by_key(|lower| lower.place.partition);
        let target = target.or(first_lower).unwrap_or_default();
        Ok((target, layers))
    }

    fn add_upper(&mut self, claim: &Claim<'_>, words: &Words) -> Result<(), StorageError> {
        if claim.fstype() != "ext4" {
            let reason = "an upper layer is ext4";
            return Err(claim.refuse("fstype", claim.fstype(), reason));
        }
        if words.verity.is_some() {
            let reason = "what is changed cannot be verified";
            return Err(claim.refuse("options", "X-kata.dmverity-enabled", reason));
        }
        let upper = Upper {
            place: place(claim, words)?,
            spec: claim.mount_spec()?,
        };
        match self.upper.replace(upper) {
            None => Ok(()),
            Some(_) => Err(claim.refuse("options", "X-kata.overlay-upper", "there is one already")),
        }
    }

    fn add_lower(&mut self, claim: &Claim<'_>, words: Words) -> Result<(), StorageError> {
        if claim.fstype() != "erofs" {
            let reason = "a lower layer is erofs";
            return Err(claim.refuse("fstype", claim.fstype(), reason));
        }
        self.lowers.push(Lower {
            place: place(claim, &words)?,
            verity: words.verity,
        });
        Ok(())
    }

    fn lower_dir(&self, number: usize) -> PathBuf {
        self.base.join(format!("lower-{number}"))
    }

    /// Mounts a lower layer; the kernel never gets to write to it.
    fn mount_lower(
        &self,
        number: usize,
        disk: &BlockDevice,
        undo: &mut Undo,
    ) -> Result<OwnedFd, StorageError> {
        let dir = self.lower_dir(number);
        make_dir(&dir, undo)?;
        let verity = self.lowers.get(number).and_then(|l| l.verity.as_ref());
        let node = match verity {
            Some(verity) => verity.open(&disk.node, undo)?,
            None => disk.node.clone(),
        };
        mount(&node, "erofs", MsFlags::MS_RDONLY, String::new()).mount(&dir, undo)?;
        open_target(&dir).map_err(StorageError::at("open", &dir))
    }

    /// Mounts what takes the changes: the host's disk, or the guest's memory.
    fn mount_upper(
        &self,
        disk: Option<&BlockDevice>,
        undo: &mut Undo,
    ) -> Result<PathBuf, StorageError> {
        let dir = self.base.join("upper");
        make_dir(&dir, undo)?;
        let spec = match (&self.upper, disk) {
            (Some(upper), Some(disk)) => MountSpec {
                source: disk.node.to_string_lossy().into_owned(),
                ..upper.spec.clone()
            },
            _ => mount(
                Path::new("tmpfs"),
                "tmpfs",
                MsFlags::empty(),
                "mode=755".to_owned(),
            ),
        };
        spec.mount(&dir, undo)?;
        Ok(dir)
    }

    /// What the host wants to be there, which is confined: the paths are plain
    /// and no link is followed on the way.
    fn make_directories(&self, upper: &Path) -> Result<(), StorageError> {
        let lower = self.lower_dir(0);
        for directory in &self.directories {
            let layer = match directory.side {
                Side::Upper => upper,
                Side::Lower => &lower,
            };
            // They belong to the layer, and stay in it.
            make_dir(&layer.join(&directory.path), &mut Undo::default())?;
        }
        Ok(())
    }
}

#[async_trait]
impl Action for Layers {
    async fn prepare(&self, _: &Path, environment: &Environment) -> Result<Ready, StorageError> {
        let places = self.lowers.iter().map(|lower| &lower.place);
        let places = places.chain(self.upper.iter().map(|upper| &upper.place));
        let mut disks = Vec::new();
        for place in places {
            let mut disk = environment.devices.disk(&place.disk).await?;
            if let Some(number) = place.partition {
                let node = DiskAddress::Node(partition_node(&disk.node, number));
                disk = environment.devices.disk(&node).await?;
            }
            disks.push(disk);
        }
        Ok(Ready { disks })
    }

    fn run(
        &self,
        place: &Path,
        ready: &Ready,
        _: &Environment,
        undo: &mut Undo,
    ) -> Result<(), StorageError> {
        make_dir(&self.base, undo)?;
        let (lowers, uppers) = ready
            .disks
            .split_at(self.lowers.len().min(ready.disks.len()));
        let mut held = Vec::new();
        for (number, disk) in lowers.iter().enumerate() {
            held.push(self.mount_lower(number, disk, undo)?);
        }
        let upper = self.mount_upper(uppers.first(), undo)?;
        self.make_directories(&upper)?;
        let (changes, work) = (upper.join("upper"), upper.join("work"));
        for dir in [&changes, &work] {
            make_dir(dir, &mut Undo::default())?;
        }
        let data = self.options(&held, &changes, &work);
        mount(Path::new("overlay"), "overlay", MsFlags::empty(), data).mount(place, undo)
    }
}

impl Layers {
    /// The lower layers by their paths where these fit, else by the descriptors
    /// that are open on them.
    fn options(&self, held: &[OwnedFd], changes: &Path, work: &Path) -> String {
        let (changes, work) = (changes.display(), work.display());
        let join = |parts: Vec<String>| {
            let lowers = parts.join(":");
            format!("lowerdir={lowers},upperdir={changes},workdir={work}")
        };
        let paths = (0..held.len()).map(|number| self.lower_dir(number));
        let data = join(paths.map(|path| path.display().to_string()).collect());
        if data.len() <= LONGEST {
            return data;
        }
        let descriptors = held
            .iter()
            .map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()));
        join(descriptors.collect())
    }
}

fn mount(source: &Path, fstype: &str, flags: MsFlags, data: String) -> MountSpec {
    MountSpec {
        source: source.to_string_lossy().into_owned(),
        fstype: fstype.to_owned(),
        options: MountOptions::plain(flags, data),
    }
}

/// Layers of the overlay-upper kind take the changes, and ext4 ones that do not say.
fn side(claim: &Claim<'_>, words: &Words) -> Result<Side, StorageError> {
    match (words.side, claim.fstype()) {
        (Some(side), _) => Ok(side),
        (None, "ext4") => Ok(Side::Upper),
        (None, "erofs") => Ok(Side::Lower),
        (None, other) => Err(claim.refuse("fstype", other, "a layer is ext4 or erofs")),
    }
}

fn place(claim: &Claim<'_>, words: &Words) -> Result<Place, StorageError> {
    let disk = match claim.driver() {
        "blk" => block::BLK.read(claim.source()),
        "scsi" => block::SCSI.read(claim.source()),
        DRIVER if claim.source().contains(':') => block::SCSI.read(claim.source()),
        DRIVER => block::BLK.read(claim.source()),
        other => return Err(claim.refuse("driver", other, "layers are on blk or scsi disks")),
    };
    Ok(Place {
        disk: disk?,
        partition: words.partition,
    })
}

/// `vda1`, and `nvme0n1p1` where the disk's own name ends with a digit.
fn partition_node(disk: &Path, number: u32) -> PathBuf {
    let disk = disk.to_string_lossy();
    let p = if disk.ends_with(|c: char| c.is_ascii_digit()) {
        "p"
    } else {
        ""
    };
    format!("{disk}{p}{number}").into()
}

#[cfg(test)]
mod tests;
