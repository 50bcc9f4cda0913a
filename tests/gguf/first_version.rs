//! Files of version 1, which counts in `u32`. No writer of today makes them.

use cube_gguf::gguf::{GgmlType, ValueType};

/// A file of three pairs and two tensors, and where its tensors' data begin.
pub fn file() -> (Vec<u8>, usize) {
    let [number, text, array] = [ValueType::U32, ValueType::String, ValueType::Array].map(ValueType::number);
    let strings = [u32s(&[array, text, 2]), string("x"), string("yz")].concat();
    let mut file = [
        head(2, 3),
        [string("a.number"), u32s(&[number, 7])].concat(),
        [string("a.string"), u32s(&[text]), string("grüße")].concat(),
        [string("strings"), strings].concat(),
        tensor("first", &[32, 2], GgmlType::Q8_0, 0),
        tensor("second", &[3], GgmlType::F32, 96),
    ]
    .concat();
    file.resize(file.len().next_multiple_of(32), 0);
    let data = file.len();
    file.extend((0..68).chain([0; 28]));
    file.extend([1f32, 2.0, 3.0].iter().flat_map(|value| value.to_le_bytes()));
    (file, data)
}

/// A file of `count` pairs and as many tensors, each as short as it can be.
pub fn entries(count: u32) -> Vec<u8> {
    let [number, truth] = [ValueType::U32, ValueType::Bool].map(ValueType::number);
    let mut file = [head(count, count + 1), string("general.alignment"), u32s(&[number, 1])].concat();
    for index in 0..count {
        file.extend([string(&format!("{index:x}")), u32s(&[truth]), vec![0]].concat());
    }
    for index in 0..count {
        file.extend(tensor(&format!("{index:x}"), &[], GgmlType::I8, index.into()));
    }
    file.resize(file.len() + count as usize, 0);
    file
}

fn head(tensors: u32, pairs: u32) -> Vec<u8> {
    [b"GGUF".to_vec(), u32s(&[1, tensors, pairs])].concat()
}

fn tensor(name: &str, dims: &[u32], ty: GgmlType, offset: u64) -> Vec<u8> {
    [string(name), u32s(&[dims.len() as u32]), u32s(dims), u32s(&[ty.number()]), offset.to_le_bytes().to_vec()].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&u32s(&[text.len() as u32]), text.as_bytes()].concat()
}

fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
