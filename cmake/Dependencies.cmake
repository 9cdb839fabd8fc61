# The small header-only dependencies. Each is looked for as a package, then as headers, so that a
# machine without the distribution's packages needs nothing but a folder of headers
# (-DSUBSPACE_DEPS=DIR, with DIR/include/nlohmann, DIR/include/CLI and DIR/include/fmt).

find_package(Threads REQUIRED)

if(SUBSPACE_DEPS)
  list(PREPEND CMAKE_PREFIX_PATH "${SUBSPACE_DEPS}")
endif()

# subspace_header_dependency(TARGET HEADER DEBIAN_PACKAGE)
function(subspace_header_dependency target header package)
  string(MAKE_C_IDENTIFIER "SUBSPACE_INCLUDE_${target}" variable)
  find_path(${variable} ${header} HINTS "${SUBSPACE_DEPS}/include" "${SUBSPACE_DEPS}")
  if(NOT ${variable})
    message(FATAL_ERROR "<${header}> not found. Install ${package}, or give a folder that holds "
                        "include/${header} by -DSUBSPACE_DEPS=DIR.")
  endif()
  add_library(${target} INTERFACE IMPORTED GLOBAL)
  # A compiler's own default folder must not be given again: as -isystem it would move ahead of
  # the C++ library's wrappers and break #include_next.
  if(NOT ${variable} IN_LIST CMAKE_CXX_IMPLICIT_INCLUDE_DIRECTORIES)
    target_include_directories(${target} SYSTEM INTERFACE "${${variable}}")
  endif()
endfunction()

subspace_header_dependency(subspace_json nlohmann/json.hpp nlohmann-json3-dev)
subspace_header_dependency(subspace_fmt fmt/format.h libfmt-dev)
# libtorch carries a newer fmt inside it; linking the system's library as well would mix the two.
target_compile_definitions(subspace_fmt INTERFACE FMT_HEADER_ONLY)
if(SUBSPACE_TORCH)
  subspace_header_dependency(subspace_cli11 CLI/CLI.hpp libcli11-dev)
endif()

if(SUBSPACE_TESTS)
  find_package(GTest QUIET)
  if(NOT GTest_FOUND)
    set(_sources /usr/src/googletest "${SUBSPACE_DEPS}/googletest")
    foreach(_source IN LISTS _sources)
      if(NOT TARGET GTest::gtest_main AND EXISTS "${_source}/CMakeLists.txt")
        set(BUILD_GMOCK OFF CACHE BOOL "" FORCE)
        set(INSTALL_GTEST OFF CACHE BOOL "" FORCE)
        add_subdirectory("${_source}" "${PROJECT_BINARY_DIR}/googletest" EXCLUDE_FROM_ALL SYSTEM)
      endif()
    endforeach()
  endif()
  if(NOT TARGET GTest::gtest_main)
    message(FATAL_ERROR "GoogleTest not found. Install libgtest-dev, or configure with "
                        "-DSUBSPACE_TESTS=OFF.")
  endif()
endif()
