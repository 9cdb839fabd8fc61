# One folder, one target.

# subspace_sources(OUT FOLDER): the folder's sources, of every language that is being built.
macro(subspace_sources out folder)
  file(GLOB ${out} CONFIGURE_DEPENDS "${folder}/*.cpp" "${folder}/families/*.cpp")
  if(SUBSPACE_CUDA)
    file(GLOB _cuda CONFIGURE_DEPENDS "${folder}/*.cu")
    list(APPEND ${out} ${_cuda})
  endif()
  # NAME_avx2.cpp and NAME_avx512.cpp are compiled for that instruction set. Nothing else is, and
  # such a file must define no inline function that others share: the linker could keep its copy.
  foreach(_source IN LISTS ${out})
    if(_source MATCHES "_avx2\\.cpp$")
      set_source_files_properties("${_source}" PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;-fno-math-errno")
    elseif(_source MATCHES "_avx512\\.cpp$")
      set_source_files_properties("${_source}" PROPERTIES COMPILE_OPTIONS
        "-mavx2;-mfma;-mf16c;-fno-math-errno;-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl")
    endif()
  endforeach()
endmacro()

# subspace_compile_together(TARGET): a quarter of what compiling a file costs is its own; the rest
# is headers of libtorch, JSON and CLI11 and what they instantiate. Several files to a translation
# unit share that, which makes the first build three times as fast. (Within a folder, file-local
# names must therefore differ.) Kernels include little and have flags of their own.
function(subspace_compile_together target)
  set_target_properties(${target} PROPERTIES
    UNITY_BUILD ${SUBSPACE_UNITY} UNITY_BUILD_MODE BATCH UNITY_BUILD_BATCH_SIZE 6)
endfunction()

# subspace_library(NAME [DEPS folder...] [LIBS library...] [TORCH])
#
# The target subspace_<NAME> from the sources of the calling folder. DEPS are other folders of
# src/, LIBS other libraries, TORCH says that the sources include ATen (and get its precompiled
# header). A folder that has only headers so far becomes an INTERFACE target.
function(subspace_library name)
  cmake_parse_arguments(ARG "TORCH" "" "DEPS;LIBS" ${ARGN})
  set(target subspace_${name})
  list(TRANSFORM ARG_DEPS PREPEND subspace_)
  subspace_sources(sources "${CMAKE_CURRENT_SOURCE_DIR}")
  if(sources)
    add_library(${target} STATIC ${sources})
    set(scope PUBLIC)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${SUBSPACE_WARNINGS}>)
    if(ARG_TORCH)
      subspace_use_torch_pch(${target})
    endif()
    if(NOT name STREQUAL "kernels")
      subspace_compile_together(${target})
    endif()
  else()
    add_library(${target} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_include_directories(${target} ${scope} "${PROJECT_SOURCE_DIR}/src")
  target_link_libraries(${target} ${scope} ${ARG_DEPS} ${ARG_LIBS})
  if(ARG_TORCH)
    target_link_libraries(${target} ${scope} subspace_torch)
  endif()
endfunction()

# subspace_test(FOLDER LABELS label... [LIBS library...] [TORCH] [TIMEOUT seconds])
#
# tests/<FOLDER>/*_test.cpp become one GoogleTest program, test_<FOLDER>, which links
# subspace_<FOLDER>; each of its cases is a CTest test called FOLDER.Suite.Case. Other .cpp files
# of the folder are helpers of the same program.
function(subspace_test folder)
  cmake_parse_arguments(ARG "TORCH" "TIMEOUT" "LABELS;LIBS" ${ARGN})
  subspace_sources(sources "${CMAKE_CURRENT_SOURCE_DIR}/${folder}")
  if(NOT sources OR NOT TARGET subspace_${folder})
    return()
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  set(target test_${folder})
  add_executable(${target} ${sources})
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${SUBSPACE_WARNINGS}>)
  target_compile_definitions(${target} PRIVATE
    SUBSPACE_TEST_DATA="${CMAKE_CURRENT_SOURCE_DIR}/${folder}/data"
    SUBSPACE_CONFIGS="${PROJECT_SOURCE_DIR}/configs")
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/tests")
  target_link_libraries(${target} PRIVATE subspace_${folder} ${ARG_LIBS} GTest::gtest_main)
  if(ARG_TORCH)
    subspace_use_torch_pch(${target})
  endif()
  if(NOT folder STREQUAL "kernels")
    subspace_compile_together(${target})
  endif()
  # PRE_TEST asks the program for its cases when ctest starts, not in the build: a test program
  # that cannot start then fails a test rather than the build.
  include(GoogleTest)
  gtest_discover_tests(${target} TEST_PREFIX ${folder}. DISCOVERY_MODE PRE_TEST
                       DISCOVERY_TIMEOUT 60
                       PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()
