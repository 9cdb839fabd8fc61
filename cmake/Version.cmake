# The commit, refreshed by every build. It is one tiny object, linked into the program alone
# (base/version.h says how), so that a commit recompiles one file and relinks one program.

set(SUBSPACE_COMMIT_CPP "${PROJECT_BINARY_DIR}/generated/commit.cpp")
add_custom_target(subspace_commit_refresh
  COMMAND "${CMAKE_COMMAND}" -DSOURCE=${PROJECT_SOURCE_DIR} -DOUT=${SUBSPACE_COMMIT_CPP}
          -P "${PROJECT_SOURCE_DIR}/cmake/write_commit.cmake"
  BYPRODUCTS "${SUBSPACE_COMMIT_CPP}" COMMENT "" VERBATIM)

# subspace_add_commit(EXECUTABLE)
function(subspace_add_commit target)
  target_sources(${target} PRIVATE "${SUBSPACE_COMMIT_CPP}")
  set_source_files_properties("${SUBSPACE_COMMIT_CPP}" PROPERTIES GENERATED TRUE SKIP_PRECOMPILE_HEADERS TRUE)
  add_dependencies(${target} subspace_commit_refresh)
endfunction()
