// SPDX-License-Identifier: Apache-2.0
//! Corpora as libFuzzer wants them (a folder of files) and as the repository keeps them (one file per target).

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use cluster_agent_core::fuzz;

const USAGE: &str = "usage: cluster-fuzz-corpus list
       cluster-fuzz-corpus seeds TARGET FOLDER     inputs made from traffic of real nodes
       cluster-fuzz-corpus unpack FILE FOLDER
       cluster-fuzz-corpus pack FOLDER FILE MAX    MAX inputs of all sizes";

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["list"] => {
            for target in cluster_fuzz::targets() {
                println!("{}", target.name);
            }
            Ok(())
        }
        ["seeds", target, folder] => {
            let seeds = cluster_fuzz::seeds();
            write_all(
                folder.as_ref(),
                seeds.iter().filter(|(name, _)| *name == target).map(|(_, input)| &input[..]),
            )
        }
        ["unpack", file, folder] => {
            let packed = fs::read(file)?;
            let inputs =
                fuzz::unpack(&packed).ok_or_else(|| io::Error::other(format!("`{file}` is damaged")))?;
            write_all(folder.as_ref(), inputs.into_iter())
        }
        ["pack", folder, file, max] => {
            let max = max.parse().map_err(io::Error::other)?;
            fs::write(file, pack(folder.as_ref(), max)?)
        }
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2)
        }
    }
}

fn write_all<'a>(folder: &Path, inputs: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (n, input) in inputs.enumerate() {
        fs::write(folder.join(format!("seed-{n:04}")), input)?;
    }
    Ok(())
}

/// Smallest first and equal ones once, so that the same inputs always give the same file. When there are more than `max`,
/// evenly spread over sizes: small ones alone would never reach far into a node.
fn pack(folder: &Path, max: usize) -> io::Result<Vec<u8>> {
    let paths: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    let mut inputs = paths.iter().map(fs::read).collect::<Result<Vec<_>, _>>()?;
    inputs.sort_unstable_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    inputs.dedup();
    let count = inputs.len().min(max);
    Ok(fuzz::pack((0..count).map(|n| &inputs[n * inputs.len() / count][..])))
}
