# Sourced by run and pin.

python_of() { # NAME (3.12, 3.12-lowest): prints the interpreter, or fails
  local version=${1%-lowest} candidate
  for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python python3; do
    # A pyenv shim exists for versions that are not switched on, so it has to be asked.
    if [[ $("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) == "$version" ]]; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}
