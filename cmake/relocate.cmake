# cmake -DPROGRAM=... -DOUT=... -P relocate.cmake: a copy whose libraries are found beside it.
get_filename_component(_folder "${OUT}" DIRECTORY)
file(INSTALL "${PROGRAM}" DESTINATION "${_folder}" USE_SOURCE_PERMISSIONS)
file(STRINGS "${PROGRAM}" _ignored LIMIT_COUNT 1)
execute_process(COMMAND readelf -d "${OUT}" OUTPUT_VARIABLE _dynamic)
string(REGEX MATCH "R(UN)?PATH[^[]*\\[([^]]*)\\]" _found "${_dynamic}")
file(RPATH_CHANGE FILE "${OUT}" OLD_RPATH "${CMAKE_MATCH_2}" NEW_RPATH "$ORIGIN/../lib/subspace")
