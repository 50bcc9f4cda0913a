//! `cube-gguf devices`.

use clap::Args;
use cube_gguf::{Backend, CubeDevice, Device};
use serde_json::json;

use crate::Outcome;
use crate::output::{escape, print, print_json};
use crate::table::{Align, Table};

#[derive(Args)]
pub struct Arguments {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// The description of a device.
struct Row {
    name: String,
    /// The runtime; `None` for Candle's kernels.
    backend: Option<Backend>,
    description: String,
    is_default: bool,
    /// Capacity of one buffer, in bytes.
    largest_buffer: Option<u64>,
    software: bool,
}

fn describe(device: &Device, best: &Device) -> Row {
    let (backend, description, largest_buffer, software) = match device {
        Device::Cpu => (None, "the host, with Candle's kernels".to_owned(), None, true),
        Device::Cube(cube) => {
            let most = cube.client().properties().memory.max_page_size;
            (Some(cube.backend()), cube.description(), Some(most), cube.is_software())
        }
    };
    Row { name: device.to_string(), backend, description, is_default: device == best, largest_buffer, software }
}

pub fn run(arguments: &Arguments) -> Outcome {
    let best = Device::best();
    let rows: Vec<Row> = Device::all().iter().map(|device| describe(device, &best)).collect();
    let missing = |backend: Backend| match rows.iter().any(|row| row.backend == Some(backend)) {
        true => None,
        false => CubeDevice::new(backend, 0).err().map(|error| error.to_string()),
    };
    if arguments.json {
        let device = |row: &Row| {
            json!({
                "name": row.name,
                "backend": row.backend.map(Backend::name),
                "description": row.description,
                "default": row.is_default,
                "software": row.software,
                "largest_buffer": row.largest_buffer,
            })
        };
        let backend = |backend: &Backend| {
            json!({
                "name": backend.name(),
                "feature": backend.feature(),
                "linked": backend.is_linked(),
                "missing": missing(*backend),
            })
        };
        print_json(&json!({
            "devices": rows.iter().map(device).collect::<Vec<_>>(),
            "backends": Backend::ALL.iter().map(backend).collect::<Vec<_>>(),
        }))?;
        return Ok(());
    }
    let mut table = Table::new(&[("device", Align::Left), ("", Align::Left), ("description", Align::Left)]);
    for row in &rows {
        let default = if row.is_default { "auto" } else { "" };
        table.row(vec![row.name.clone(), default.to_owned(), escape(&row.description)]);
    }
    let mut text = table.render();
    let missing: Vec<String> = Backend::ALL.into_iter().filter_map(missing).collect();
    if !missing.is_empty() {
        text.push('\n');
        missing.iter().for_each(|reason| text.push_str(&format!("{}\n", escape(reason))));
    }
    Ok(print(&text)?)
}
