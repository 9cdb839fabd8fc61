# subspace_embed(TARGET NAME FOLDER)
#
# Compiles every file of FOLDER into TARGET, which is told how by the generated header
# "embedded/NAME.h":
#     std::string_view subspace::embedded::NAME(std::string_view file);   // empty if there is none
# The files are text; a change of one recompiles one generated source.
# A target that has only headers so far has nothing to compile them into and is left as it is.
function(subspace_embed target name folder)
  get_target_property(type ${target} TYPE)
  if(type STREQUAL "INTERFACE_LIBRARY")
    return()
  endif()
  file(GLOB files CONFIGURE_DEPENDS "${folder}/*")
  set(base "${PROJECT_BINARY_DIR}/generated/embedded/${name}")
  add_custom_command(
    OUTPUT "${base}.cpp" "${base}.h"
    COMMAND "${CMAKE_COMMAND}" "-DFILES=${files}" -DNAME=${name} -DOUT=${base}
            -P "${PROJECT_SOURCE_DIR}/cmake/write_embedded.cmake"
    DEPENDS ${files} "${PROJECT_SOURCE_DIR}/cmake/write_embedded.cmake"
    COMMENT "Embedding ${name}" VERBATIM)
  target_sources(${target} PRIVATE "${base}.cpp" "${base}.h")
  target_include_directories(${target} PRIVATE "${PROJECT_BINARY_DIR}/generated")
endfunction()
