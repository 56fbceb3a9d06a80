//! Stores of earlier versions as files of this repository: a data directory packed into one file, in which long runs of
//! zeros, of which a database of sled mostly consists, take eight bytes.
//!
//! ```text
//! for each file   length of its path (u16), path, length (u32)
//!                 for each run: zeros (u32), bytes (u32), the bytes; together they are as long as the file
//! ```
//!
//! All numbers are big endian.

use std::fs;
use std::path::{Path, PathBuf};

/// So many zeros in a row are worth a run of their own.
const ZEROS_MIN: usize = 32;

/// Packs all files below a directory, but for locks.
pub(super) fn pack(root: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for path in files(root) {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        let bytes = fs::read(&path).unwrap();
        out.extend_from_slice(&(name.len() as u16).to_be_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let zeros = rest.iter().take_while(|byte| **byte == 0).count();
            rest = &rest[zeros..];
            let end = rest.windows(ZEROS_MIN).position(|window| window.iter().all(|byte| *byte == 0));
            let (run, after) = rest.split_at(end.unwrap_or(rest.len()));
            out.extend_from_slice(&(zeros as u32).to_be_bytes());
            out.extend_from_slice(&(run.len() as u32).to_be_bytes());
            out.extend_from_slice(run);
            rest = after;
        }
    }
    out
}

/// Makes the files of a packed directory below `root`.
pub(super) fn unpack(packed: &[u8], root: &Path) {
    let mut rest = packed;
    while !rest.is_empty() {
        let length = usize::from(u16::from_be_bytes(take(&mut rest, 2).try_into().unwrap()));
        let path = root.join(std::str::from_utf8(take(&mut rest, length)).unwrap());
        let length = number(&mut rest);
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let zeros = number(&mut rest);
            bytes.resize(bytes.len() + zeros, 0);
            let run = number(&mut rest);
            bytes.extend_from_slice(take(&mut rest, run));
        }
        assert_eq!(bytes.len(), length, "{}", path.display());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let below = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    paths.into_iter().filter(|path| !path.ends_with("demi.lock")).flat_map(below).collect()
}

fn number(rest: &mut &[u8]) -> usize {
    u32::from_be_bytes(take(rest, 4).try_into().unwrap()) as usize
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, after) = rest.split_at(length);
    *rest = after;
    taken
}
