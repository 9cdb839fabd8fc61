# Language level, warnings, sanitizers and caching, for every target of the project.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

# Line tables only: stack traces and profiles name lines, and objects stay a tenth of -g2's size.
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -g1")
set(CMAKE_CXX_FLAGS_DEBUG "-O1 -g2")

# One baseline for the whole program; kernels that want more are compiled per file (see Targets)
# and chosen at run time. -march=native would make a binary that dies on the next machine.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-march=x86-64-v2>)
endif()

# No machine path in a binary, and the same objects (and ccache entries) from every checkout.
add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-ffile-prefix-map=${PROJECT_SOURCE_DIR}/=>")

if(SUBSPACE_SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${SUBSPACE_SANITIZE}>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=undefined>)
  add_link_options(-fsanitize=${SUBSPACE_SANITIZE})
endif()

# Applied to our targets only, so that dependencies built from source keep their own.
set(SUBSPACE_WARNINGS -Wall -Wextra $<$<BOOL:${SUBSPACE_WERROR}>:-Werror>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 sees an overflow in fmt 9's fill character that is not there.
  list(APPEND SUBSPACE_WARNINGS -Wno-stringop-overflow)
endif()
# With the sanitizers' checks in between, g++ 13 takes std::regex's members for uninitialised.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND SUBSPACE_SANITIZE)
  list(APPEND SUBSPACE_WARNINGS -Wno-maybe-uninitialized)
endif()
# g++ 13 takes f(object, "key") returning a reference into the object for one into the key's temporary.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
  list(APPEND SUBSPACE_WARNINGS $<$<COMPILE_LANGUAGE:CXX>:-Wno-dangling-reference>)
endif()

# A precompiled header is a cacheable result only if ccache may trust its defines and ignore the
# times of the files in it; gcc must also say in its preprocessed output that it used one.
find_program(SUBSPACE_CCACHE ccache)
if(SUBSPACE_CCACHE)
  set(_launcher "${CMAKE_COMMAND}" -E env
      "CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime"
      "CCACHE_BASEDIR=${PROJECT_SOURCE_DIR}" "${SUBSPACE_CCACHE}")
  set(CMAKE_CXX_COMPILER_LAUNCHER ${_launcher})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${_launcher})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
  endif()
endif()

if(SUBSPACE_CUDA)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80 90)
  endif()
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -lineinfo")
  find_package(CUDAToolkit REQUIRED)
  add_compile_definitions(SUBSPACE_CUDA=1)
endif()
