# lazyllm::libtorch: headers and three libraries of the LibTorch in CMAKE_PREFIX_PATH.
#
# Not find_package(Torch), which wants the whole CUDA toolkit where torch was built with CUDA; the
# operators need none of it.
set(torch_hints)
foreach(prefix IN LISTS CMAKE_PREFIX_PATH)
  list(APPEND torch_hints "${prefix}" "${prefix}/../..")  # torch.utils.cmake_prefix_path lies deep
endforeach()
find_path(TORCH_ROOT include/torch/headeronly/version.h HINTS ${torch_hints} NO_CACHE)
if(NOT TORCH_ROOT)
  message(FATAL_ERROR "no LibTorch 2.10 or newer in CMAKE_PREFIX_PATH (\"${CMAKE_PREFIX_PATH}\"); "
                      "torch.utils.cmake_prefix_path says where Python's is")
endif()
get_filename_component(TORCH_ROOT "${TORCH_ROOT}" REALPATH)
add_library(lazyllm::libtorch INTERFACE IMPORTED)
target_include_directories(lazyllm::libtorch SYSTEM INTERFACE
  "${TORCH_ROOT}/include" "${TORCH_ROOT}/include/torch/csrc/api/include")
target_link_directories(lazyllm::libtorch INTERFACE "${TORCH_ROOT}/lib")
target_link_libraries(lazyllm::libtorch INTERFACE
  -Wl,--no-as-needed torch torch_cpu c10 -Wl,--as-needed)
