# The libraries of device kernels: with mcc for MUSA where its toolkit is found, and, for those who
# work on the kernels, with the host compiler through emulator/ (MTACTORS_EMULATED_MUSA).
#
# The environment decides: MUSA_HOME or MUSA_PATH is the toolkit, MTACTORS_MUSA_ARCHS the chips
# ("22,31" when unset; "none" leaves the library out). musa-build.txt is installed beside the
# libraries and says in one line what was done and why.

file(GLOB MUSA_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.mu)
file(GLOB MUSA_HEADERS CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.muh)
set(MUSA_DIRECTORY ${CMAKE_CURRENT_LIST_DIR})
get_filename_component(KERNELS_DIRECTORY ${MUSA_DIRECTORY} DIRECTORY)
list(APPEND MUSA_HEADERS ${MUSA_DIRECTORY}/library.h ${KERNELS_DIRECTORY}/abi.h)

function(report_musa line)
  message(STATUS "MUSA kernels: ${line}")
  file(WRITE ${CMAKE_BINARY_DIR}/musa-build.txt "${line}\n")
  install(FILES ${CMAKE_BINARY_DIR}/musa-build.txt DESTINATION mtactors/kernels)
endfunction()

# add_mcc_command(OUTPUT WHAT DEPENDS... -- COMMAND...): mcc.cmake says in one line what failed.
function(add_mcc_command output what)
  cmake_parse_arguments(PARSE_ARGV 2 given "" "" "COMMAND;DEPENDS")
  add_custom_command(
    OUTPUT ${output}
    COMMAND ${CMAKE_COMMAND} "-DWHAT=${what}" "-DCOMMAND=${given_COMMAND}" -P
            ${MUSA_DIRECTORY}/mcc.cmake
    DEPENDS ${given_DEPENDS} ${MUSA_DIRECTORY}/mcc.cmake
    COMMENT "mcc: ${what}"
    VERBATIM)
endfunction()

# Compiles and links libmtactors_musa.so with the mcc of a toolkit.
function(add_musa_library home archs)
  set(mcc ${home}/bin/mcc)
  set(offload ${archs})
  list(TRANSFORM offload PREPEND --offload-arch=mp_)
  # Contraction is off for the same reason as on the CPU: the order of operations is written down.
  set(flags -std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off ${offload}
            -I${KERNELS_DIRECTORY} -I${MUSA_DIRECTORY} -I${home}/include)
  set(objects)
  foreach(source ${MUSA_SOURCES})
    get_filename_component(name ${source} NAME)
    set(object ${CMAKE_BINARY_DIR}/musa/${name}.o)
    add_mcc_command(${object} ${name} COMMAND ${mcc} ${flags} -c ${source} -o ${object}
                    DEPENDS ${source} ${MUSA_HEADERS})
    list(APPEND objects ${object})
  endforeach()
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/musa)
  set(lib ${home}/lib)
  if(EXISTS ${home}/lib64)
    set(lib ${home}/lib64)
  endif()
  set(library ${CMAKE_BINARY_DIR}/libmtactors_musa.so)
  add_mcc_command(${library} libmtactors_musa.so
                  COMMAND ${mcc} -shared -fPIC ${offload} -o ${library} ${objects} -L${lib}
                          -lmusart -Wl,-rpath,${lib}
                  DEPENDS ${objects})
  add_custom_target(mtactors_musa ALL DEPENDS ${library})
  install(PROGRAMS ${library} DESTINATION mtactors/kernels)
  execute_process(COMMAND ${mcc} --version OUTPUT_VARIABLE version ERROR_QUIET RESULT_VARIABLE bad)
  string(REGEX MATCH "^[^\n]*" version "${version}")
  if(bad OR version STREQUAL "")
    set(version "of an unknown version")
  endif()
  list(TRANSFORM archs PREPEND mp_)
  string(REPLACE ";" ", " archs "${archs}")
  report_musa("built for ${archs} with ${mcc} (${version})")
endfunction()

set(archs "22,31")
if(NOT "$ENV{MTACTORS_MUSA_ARCHS}" STREQUAL "")
  set(archs "$ENV{MTACTORS_MUSA_ARCHS}")
endif()
if(NOT archs MATCHES "^(none|[0-9]+([,;][0-9]+)*)$")
  message(FATAL_ERROR "MTACTORS_MUSA_ARCHS=${archs}: name chips as in 22,31, or none")
endif()
string(REPLACE "," ";" archs "${archs}")

# Not whatever `mcc` is on the PATH: other products have a program of that name.
set(homes "$ENV{MUSA_HOME}" "$ENV{MUSA_PATH}" /usr/local/musa)
list(REMOVE_ITEM homes "")
list(REMOVE_DUPLICATES homes)
set(home)
foreach(candidate ${homes})
  if(NOT home AND EXISTS ${candidate}/bin/mcc)
    set(home ${candidate})
  endif()
endforeach()

if(archs STREQUAL "none")
  report_musa("not built: MTACTORS_MUSA_ARCHS=none")
elseif(home)
  add_musa_library("${home}" "${archs}")
else()
  string(REPLACE ";" ", " places "${homes}")
  report_musa("not built: no bin/mcc in ${places} (MUSA_HOME names the toolkit)")
endif()

option(MTACTORS_EMULATED_MUSA "Build the device kernels for the host as well, to test them" OFF)
if(MTACTORS_EMULATED_MUSA)
  file(GLOB emulator CONFIGURE_DEPENDS ${MUSA_DIRECTORY}/emulator/*.cpp)
  set_source_files_properties(${MUSA_SOURCES} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
  add_library(mtactors_emulated_musa SHARED ${MUSA_SOURCES} ${emulator})
  # -O2: what -O3 adds is time in the compiler. Kernels read elements of any type in words of 16
  # bytes, and fibres return to other stacks than a shadow stack would allow.
  target_compile_options(mtactors_emulated_musa PRIVATE ${COMMON_FLAGS} -O2 -fno-strict-aliasing
                                                        "SHELL:-iquote ${MUSA_DIRECTORY}")
  check_cxx_compiler_flag(-fcf-protection=none MT_COMPILER_HAS_CF_PROTECTION)
  if(MT_COMPILER_HAS_CF_PROTECTION)
    target_compile_options(mtactors_emulated_musa PRIVATE -fcf-protection=none)
  endif()
  target_include_directories(mtactors_emulated_musa PRIVATE ${MUSA_DIRECTORY}/emulator)
  target_link_libraries(mtactors_emulated_musa PRIVATE Threads::Threads)
  install(TARGETS mtactors_emulated_musa LIBRARY DESTINATION mtactors/kernels)
endif()
