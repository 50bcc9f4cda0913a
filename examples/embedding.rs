//! Gathers rows of a model's embedding table by token ids; only these rows are dequantized.
//!
//! `cargo run --release --features hip --example embedding -- model.gguf rocm:0 2 818 5279`

use std::error::Error;

use cube_gguf::gguf::Files;
use cube_gguf::{Device, DeviceTensor, FloatType};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(device)) = (arguments.next(), arguments.next()) else {
        return Err("usage: embedding FILE DEVICE ID...".into());
    };
    let ids = arguments.map(|id| id.parse()).collect::<Result<Vec<i64>, _>>()?;
    let Device::Cube(device) = device.parse::<Device>()? else {
        return Err("cpu has no device memory: name cube-cpu or a GPU".into());
    };

    let files = Files::open(file)?;
    let table = DeviceTensor::load(&device, &files.parse()?.tensor("token_embd.weight")?)?;
    println!("{} rows of {} values on {device}", table.n(), table.k());
    for (id, row) in ids.iter().zip(embed(&table, &ids)?) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        println!("{id}: {:?} and so on, of norm {norm}", &row[..row.len().min(4)]);
    }
    Ok(())
}

/// The rows that `ids` name, in the order of the ids.
fn embed(table: &DeviceTensor, ids: &[i64]) -> cube_gguf::Result<Vec<Vec<f32>>> {
    let values = table.rows(ids, FloatType::F32)?;
    Ok(values.chunks_exact(table.k().max(1)).map(<[f32]>::to_vec).collect())
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use cube_gguf::{Backend, CubeDevice};

    use super::*;

    #[test]
    fn rows_are_those_of_the_dequantized_table() {
        let files = Files::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/q4_k.gguf")).unwrap();
        let model = files.parse().unwrap();
        let device = CubeDevice::new(Backend::CubeCpu, 0).unwrap();
        let table = DeviceTensor::load(&device, &model.tensor("random").unwrap()).unwrap();
        let all = table.dequantize(FloatType::F32).unwrap();
        let ids = [5, 0, 3, 3];
        let rows = embed(&table, &ids).unwrap();
        assert_eq!(rows.len(), ids.len());
        for (id, row) in ids.into_iter().zip(rows) {
            assert_eq!(row, all[id as usize * table.k()..][..table.k()], "row {id}");
        }
        let past = table.n() as i64;
        assert!(embed(&table, &[0, past]).is_err() && embed(&table, &[-1]).is_err());
    }
}
