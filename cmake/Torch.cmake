# libtorch, from the PyTorch of the project's Python.
#
# The libraries are imported by hand and not by find_package(Torch): that one insists on a CUDA
# toolkit as soon as the wheel was built with CUDA, even where only the CPU part is used, and adds
# flags for architectures of its own choice.

execute_process(
  COMMAND "${SUBSPACE_PYTHON}" -c
    "import torch, os; print(os.path.dirname(torch.__file__), torch.__version__, int(torch._C._GLIBCXX_USE_CXX11_ABI), torch.version.cuda or 'cpu', sep='\\n')"
  OUTPUT_VARIABLE _torch ERROR_VARIABLE _error RESULT_VARIABLE _status
  OUTPUT_STRIP_TRAILING_WHITESPACE)
if(NOT _status EQUAL 0)
  message(FATAL_ERROR
    "${SUBSPACE_PYTHON} cannot import torch (${_status}):\n${_error}\n"
    "Run ./run build, which sets Python up; or name a Python that has PyTorch 2.11 or newer by "
    "-DSUBSPACE_PYTHON=FILE; or build without it by -DSUBSPACE_TORCH=OFF.")
endif()
string(REPLACE "\n" ";" _torch "${_torch}")
list(GET _torch 0 SUBSPACE_TORCH_DIR)
list(GET _torch 1 SUBSPACE_TORCH_VERSION)
list(GET _torch 2 _abi)
list(GET _torch 3 SUBSPACE_TORCH_CUDA)
message(STATUS "PyTorch ${SUBSPACE_TORCH_VERSION} (${SUBSPACE_TORCH_CUDA}) in ${SUBSPACE_TORCH_DIR}")
if(SUBSPACE_TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "PyTorch ${SUBSPACE_TORCH_VERSION} is too old: 2.11 or newer is needed.")
endif()
if(NOT _abi)
  add_compile_definitions(_GLIBCXX_USE_CXX11_ABI=0)
endif()

set(_lib "${SUBSPACE_TORCH_DIR}/lib")
set(_links "${_lib}/libtorch.so" "${_lib}/libtorch_cpu.so" "${_lib}/libc10.so")
add_library(subspace_torch INTERFACE)
target_include_directories(subspace_torch SYSTEM INTERFACE
  "${SUBSPACE_TORCH_DIR}/include" "${SUBSPACE_TORCH_DIR}/include/torch/csrc/api/include")
if(SUBSPACE_CUDA)
  if(SUBSPACE_TORCH_CUDA STREQUAL "cpu")
    message(FATAL_ERROR "SUBSPACE_CUDA=ON needs a PyTorch with CUDA; ${SUBSPACE_PYTHON} has "
                        "${SUBSPACE_TORCH_VERSION}. -DSUBSPACE_TORCH=OFF builds the kernels alone.")
  endif()
  # Nothing refers to libtorch_cuda by name (it registers itself), so --as-needed, the default of
  # Ubuntu's compiler, would drop it and leave a program without CUDA.
  list(APPEND _links -Wl,--push-state,--no-as-needed "${_lib}/libtorch_cuda.so"
                     "${_lib}/libc10_cuda.so" -Wl,--pop-state)
  target_link_libraries(subspace_torch INTERFACE CUDA::cudart)
endif()
# The libraries that libtorch itself needs are found by its own run path; the linker need not.
target_link_libraries(subspace_torch INTERFACE ${_links} Threads::Threads
                      -Wl,--allow-shlib-undefined)

set(CMAKE_BUILD_RPATH "${_lib}")
set(CMAKE_INSTALL_RPATH "$ORIGIN/../lib")

# The one precompiled header. A file that includes ATen costs many seconds without it, less than
# one with it; headers of torch/csrc/api (torch/torch.h) are not in it because nothing uses them.
file(WRITE "${PROJECT_BINARY_DIR}/generated/torch_pch.cpp.new" "// Compiled for its precompiled header.\n")
file(COPY_FILE "${PROJECT_BINARY_DIR}/generated/torch_pch.cpp.new"
     "${PROJECT_BINARY_DIR}/generated/torch_pch.cpp" ONLY_IF_DIFFERENT)
add_library(subspace_torch_pch OBJECT "${PROJECT_BINARY_DIR}/generated/torch_pch.cpp")
target_link_libraries(subspace_torch_pch PRIVATE subspace_torch subspace_fmt subspace_json)
target_compile_options(subspace_torch_pch PRIVATE ${SUBSPACE_WARNINGS})
target_precompile_headers(subspace_torch_pch PRIVATE
  <ATen/ATen.h> <nlohmann/json.hpp> <filesystem> <map> <optional> <string> <thread> <vector>)

function(subspace_use_torch_pch target)
  target_precompile_headers(${target} REUSE_FROM subspace_torch_pch)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Winvalid-pch>)
  target_link_libraries(${target} PRIVATE subspace_torch)
endfunction()
