# Assembles the LLVM 23 bundle that cubecl-llvm's build script expects, from Debian's packages, and
# adds ROCm's device libraries to it. Needs no root; about 60 MB down, 0.3 GB on disk.
# usage: llvm23 BUNDLE [llvm] [device-libs]
set -euo pipefail
bundle=$1 parts=" ${*:2} "
wants() { [[ $parts == *" $1 "* ]]; }
die() { echo "llvm23: $*" >&2; exit 1; }

mkdir -p "$(dirname "$bundle")"
# Beside its destination, so that what is complete is moved there in one step.
work=$(mktemp -d "$bundle.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# The machine's own mirror, asked for the suites that carry LLVM 23, in an apt state of its own.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | sed -n 1p)
[[ -n $mirror ]] || # no package list was ever fetched
  mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
    grep -oE '^(URIs: *|deb +(\[[^]]*\] +)?)https?://[^ ]+/debian/?' | grep -oE 'https?://[^ ]+' | sed -n 1p || true)
[[ -n $mirror ]] || die "no Debian mirror in this machine's apt sources"
mkdir -p "$work"/{lists/partial,cache/archives/partial,debs,root}
for suite in sid experimental; do
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
done > "$work/sources.list"
options=(-oDir::State::Lists="$work/lists" -oDir::Etc::SourceList="$work/sources.list" -oDir::Etc::SourceParts=/dev/null
  -oDir::Cache="$work/cache" -oAPT::Sandbox::User=root)
apt-get -qq "${options[@]}" update

packages=()
if wants llvm; then packages+=(llvm-23-dev liblld-23 liblld-23-dev); fi
if wants device-libs; then
  # The newest whose bitcode LLVM 23 reads.
  for version in 23 22 21; do
    if [[ -n $(apt-cache "${options[@]}" show "rocm-device-libs-$version" 2>/dev/null) ]]; then
      packages+=("rocm-device-libs-$version")
      break
    fi
  done
fi
(cd "$work/debs" && apt-get -qq "${options[@]}" download "${packages[@]}")
for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/root"; done

device_libs() {
  local ocml
  ocml=$(find "$work/root" -name ocml.bc | sed -n 1p)
  [[ -n $ocml ]] || die "no package has ROCm's device libraries"
  mkdir -p "$1"
  mv "$(dirname "$ocml")" "$1/bitcode"
}

if ! wants llvm; then
  device_libs "$work/amdgcn"
  rm -rf "$bundle/amdgcn"
  mv "$work/amdgcn" "$bundle/amdgcn"
  exit
fi

new=$work/bundle
mkdir -p "$new"/{bin,lib,include}
llvm=$work/root/usr/lib/llvm-23
# Only the targets that CubeCL emits code for: the host's, AMDGPU and NVPTX.
targets=(AArch64 ARM AVR BPF Hexagon Lanai LoongArch M68k MSP430 Mips PowerPC RISCV SPIRV Sparc SystemZ VE WebAssembly XCore Xtensa)
# VE's name begins others' too, so its parts are spelled out.
skip="^libLLVM($(IFS='|'; echo "${targets[*]/%VE/VE(AsmParser|CodeGen|Desc|Disassembler|Info)}")|BOLT|Exegesis)"
for lib in "$llvm"/lib/libLLVM*.a; do [[ $(basename "$lib") =~ $skip ]] || mv "$lib" "$new/lib/"; done
mv "$llvm"/lib/liblld{ELF,Common}.a "$new/lib/"
cp -r "$work/root/usr/include/llvm-23/llvm" "$work/root/usr/include/llvm-c-23/llvm-c" "$llvm/include/lld" "$new/include/"
if wants device-libs; then device_libs "$new/amdgcn"; fi

# What the packages' newer glibc, and the targets and the Polly left out, would have provided.
{
  cat <<'C'
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#define W __attribute__((weak))
W long __isoc23_strtol(const char *s, char **e, int b) { return strtol(s, e, b); }
W unsigned long __isoc23_strtoul(const char *s, char **e, int b) { return strtoul(s, e, b); }
W long long __isoc23_strtoll(const char *s, char **e, int b) { return strtoll(s, e, b); }
W unsigned long long __isoc23_strtoull(const char *s, char **e, int b) { return strtoull(s, e, b); }
W int __isoc23_sscanf(const char *s, const char *f, ...) {
  va_list a;
  va_start(a, f);
  int r = vsscanf(s, f, a);
  va_end(a);
  return r;
}
struct plugin { unsigned api; const char *name, *version; void *passes, *codegen; };
W struct plugin _Z18getPollyPluginInfov(void) { struct plugin none = {0}; return none; }
C
  for target in "${targets[@]}"; do
    for part in TargetInfo Target TargetMC AsmParser AsmPrinter Disassembler; do
      echo "W void LLVMInitialize$target$part(void) {}"
    done
  done
} > "$work/compat.c"
"${CC:-cc}" -O2 -fPIC -c "$work/compat.c" -o "$work/compat.o"
ar rcsD "$new/lib/libllvm_compat.a" "$work/compat.o"

# The packages' own llvm-config needs the newer glibc too; this answers what the build scripts ask.
version=$(dpkg-deb -f "$work"/debs/llvm-23-dev_*.deb Version | sed -E 's/^[0-9]+://; s/[-+~].*//')
cat > "$new/bin/llvm-config" <<S
#!/bin/sh
prefix=\$(cd "\$(dirname "\$0")/.." && pwd)
for arg in "\$@"; do case \$arg in
  --version) echo $version ;;
  --prefix) echo "\$prefix" ;;
  --libdir) echo "\$prefix/lib" ;;
  --includedir) echo "\$prefix/include" ;;
  --libs | --libnames) for lib in "\$prefix"/lib/libLLVM*.a; do lib=\${lib##*/lib}; printf -- '-l%s ' "\${lib%.a}"; done; echo ;;
  --system-libs) echo "-lllvm_compat -lrt -ldl -lm -lz -lzstd -lxml2 -lpthread" ;;
  --cflags) echo "-I\$prefix/include" ;;
  --cxxflags) echo "-I\$prefix/include -std=c++17 -fno-exceptions -funwind-tables -fno-rtti -D_GNU_SOURCE -D__STDC_CONSTANT_MACROS -D__STDC_FORMAT_MACROS -D__STDC_LIMIT_MACROS" ;;
esac; done
S
chmod +x "$new/bin/llvm-config"

touch "$new/.tracel-llvm-installed"
rm -rf "$bundle"
mv "$new" "$bundle"
