// Gradients shared between neighbours; see include/unblemish/sharing.hpp.
//
// A block takes tiles of kAcross x kDown pixels of one item in turn, a warp for each row: what its threads read
// of images, and write, lies side by side. A tile with all its channels and its halo is brought to shared memory;
// the _wide kernels, for halos that do not fit, read neighbours from the caches and give the same bits. A weight is
// computed by each of the two pixels it belongs to: storing it would cost more than the exponential.
#include "common.cuh"
#include "unblemish/sharing.hpp"

namespace unblemish::cuda {

constexpr int kAcross = 32;
constexpr int kDown = kThreads / kAcross;
constexpr int kRoom = 6144;  // floats: chips of 100 KiB hold as many blocks as their registers do

// Sizes; `reach`: how far a neighbour is whose weight is not 0, at most `radius`.
struct Grid {
  int channels, height, width, radius, reach;

  __device__ size_t plane() const { return static_cast<size_t>(height) * width; }
  __device__ size_t image() const { return channels * plane(); }
  __device__ int side() const { return 2 * radius + 1; }
  __device__ size_t table() const { return plane() * side() * side(); }
  __device__ int pitch() const { return kAcross + 2 * reach; }
  __device__ int rows() const { return kDown + 2 * reach; }
  __device__ int room() const { return channels * pitch() * rows(); }
};

struct Falloff {
  float inverse_sigma_space;
  float inverse_sigma_colour;

  __device__ float space(int dy, int dx) const { return static_cast<float>(dy * dy + dx * dx) * inverse_sigma_space; }
};

// Corner of a tile, and this thread's pixel.
struct Tile {
  int top, left, y, x;

  __device__ size_t at(const Grid& grid) const { return static_cast<size_t>(y) * grid.width + x; }
  __device__ bool inside(const Grid& grid, int dy, int dx) const {
    return static_cast<unsigned>(y + dy) < static_cast<unsigned>(grid.height) &&
           static_cast<unsigned>(x + dx) < static_cast<unsigned>(grid.width);
  }
};

// Call work(item, tile) for the tiles of this block.
template <class Work>
__device__ void for_tiles(const Grid& grid, int batch, const Work& work) {
  const int row = static_cast<int>(threadIdx.x) / kAcross, column = static_cast<int>(threadIdx.x) % kAcross;
  const size_t across = (static_cast<size_t>(grid.width) + kAcross - 1) / kAcross;
  const size_t tiles = across * ((static_cast<size_t>(grid.height) + kDown - 1) / kDown);
  for (size_t b = blockIdx.y; b < static_cast<size_t>(batch); b += gridDim.y)
    for (size_t t = blockIdx.x; t < tiles; t += gridDim.x) {
      const int top = static_cast<int>(t / across) * kDown, left = static_cast<int>(t % across) * kAcross;
      work(b, Tile{top, left, top + row, left + column});
    }
}

// This thread's pixel of an image, and how far the next row and the next channel are.
template <class Offset>
struct View {
  const float* here;
  Offset row, plane;
};

// All channels of a tile and its halo. What lies outside of the image is not written, and nobody reads it.
__device__ void bring(const float* image, const Grid& grid, const Tile& tile, float* room) {
  const int first = static_cast<int>(threadIdx.x) / kAcross, lane = static_cast<int>(threadIdx.x) % kAcross;
  for (int c = 0; c < grid.channels; ++c, image += grid.plane(), room += grid.pitch() * grid.rows())
    for (int row = first; row < grid.rows(); row += kDown)
      for (int column = lane; column < grid.pitch(); column += kAcross) {
        const int y = tile.top + row - grid.reach, x = tile.left + column - grid.reach;
        if (y >= 0 && y < grid.height && x >= 0 && x < grid.width)
          room[row * grid.pitch() + column] = image[static_cast<size_t>(y) * grid.width + x];
      }
}

// Of the image brought to `room`; complete after a __syncthreads.
__device__ View<int> view(const float* image, const Grid& grid, const Tile& tile, float* room) {
  bring(image, grid, tile, room);
  const int at = (tile.y - tile.top + grid.reach) * grid.pitch() + tile.x - tile.left + grid.reach;
  return {room + at, grid.pitch(), grid.pitch() * grid.rows()};
}

// Of the image where it lies.
__device__ View<long long> view(const float* image, const Grid& grid, const Tile& tile, std::nullptr_t) {
  return {image + tile.at(grid), grid.width, static_cast<long long>(grid.plane())};
}

// Shared memory for the tiles, or nothing.
template <bool Wide>
__device__ auto room_for_tiles() {
  if constexpr (Wide) {
    return nullptr;
  } else {
    __shared__ float room[kRoom];
    return static_cast<float*>(room);
  }
}

__device__ __forceinline__ float* behind(float* room, const Grid& grid) { return room + grid.room(); }
__device__ __forceinline__ std::nullptr_t behind(std::nullptr_t, const Grid&) { return nullptr; }

// Call visit(k, offset, dy, dx) for the neighbours of a pixel inside the image, in order.
template <class Offset, class Visit>
__device__ void for_neighbours(const Grid& grid, const Tile& tile, Offset row, const Visit& visit) {
  for (int dy = -grid.reach; dy <= grid.reach; ++dy)
    for (int dx = -grid.reach; dx <= grid.reach; ++dx)
      if (tile.inside(grid, dy, dx))
        visit(static_cast<size_t>((dy + grid.radius) * grid.side() + dx + grid.radius), dy * row + dx, dy, dx);
}

// Weights of a pixel's neighbours before they are normalised. Channels = 0: any number.
template <int Channels, class Offset>
struct Colours {
  View<Offset> x;
  Falloff falloff;
  int count;
  float own[Channels > 0 ? Channels : 1];

  __device__ Colours(const View<Offset>& seen, const Falloff& f, int channels) : x(seen), falloff(f), count(channels) {
    for (int c = 0; c < Channels; ++c) own[c] = x.here[c * x.plane];
  }

  // `space`: at most kLargestSpace.
  __device__ float weight(Offset offset, float space) const {
    float distance = 0.0f;
    if constexpr (Channels > 0) {
#pragma unroll
      for (int c = 0; c < Channels; ++c) {
        const float d = x.here[c * x.plane + offset] - own[c];
        distance += d * d;
      }
    } else {
      for (int c = 0; c < count; ++c) {
        const float d = x.here[c * x.plane + offset] - x.here[c * x.plane];
        distance += d * d;
      }
    }
    return sharing_weight(distance, space, falloff.inverse_sigma_colour);
  }
};

// One pixel's column of the table; a neighbour that is missing, or too far for its colour to matter, counts 0.
template <int Channels, class Offset>
__device__ void weigh(const View<Offset>& x, const Grid& grid, const Tile& tile, const Falloff& falloff,
                      unsigned short* out) {
  const Colours<Channels, Offset> colours(x, falloff, grid.channels);
  float total = 0.0f;
  for_neighbours(grid, tile, x.row, [&](size_t, Offset offset, int dy, int dx) {
    const float space = falloff.space(dy, dx);
    if (space <= kLargestSpace) total += colours.weight(offset, space);
  });
  for (int dy = -grid.radius; dy <= grid.radius; ++dy)
    for (int dx = -grid.radius; dx <= grid.radius; ++dx, out += grid.plane()) {
      const float space = falloff.space(dy, dx);
      const bool counts = space <= kLargestSpace && tile.inside(grid, dy, dx);
      *out = counts ? half_of_float(colours.weight(dy * x.row + dx, space) / total) : 0;
    }
}

// Sums of `Channels` channels stay in registers, `w` is read once for all of them; of any other number, for each.
template <int Channels, class Offset>
__device__ void share(const View<Offset>& g, const unsigned short* w, const Grid& grid, const Tile& tile,
                      float* shared) {
  constexpr int kept = Channels > 0 ? Channels : 1;
  for (int c = 0; c < grid.channels; c += kept) {
    float sum[kept] = {};
    for_neighbours(grid, tile, g.row, [&](size_t k, Offset offset, int, int) {
      const float weight = float_of_half(w[k * grid.plane()]);
#pragma unroll
      for (int j = 0; j < kept; ++j) sum[j] += weight * g.here[(c + j) * g.plane + offset];
    });
#pragma unroll
    for (int j = 0; j < kept; ++j) shared[(c + j) * grid.plane()] = sum[j];
  }
}

// As `share`, with weights made on the way.
template <int Channels, class Offset>
__device__ void share_directly(const View<Offset>& g, const View<Offset>& x, const Grid& grid, const Tile& tile,
                               const Falloff& falloff, float* shared) {
  constexpr int kept = Channels > 0 ? Channels : 1;
  const Colours<Channels, Offset> colours(x, falloff, grid.channels);
  for (int c = 0; c < grid.channels; c += kept) {
    float sum[kept] = {};
    float total = 0.0f;
    for_neighbours(grid, tile, g.row, [&](size_t, Offset offset, int dy, int dx) {
      const float space = falloff.space(dy, dx);
      if (space > kLargestSpace) return;
      const float weight = colours.weight(offset, space);
      total += weight;
#pragma unroll
      for (int j = 0; j < kept; ++j) sum[j] += weight * g.here[(c + j) * g.plane + offset];
    });
#pragma unroll
    for (int j = 0; j < kept; ++j) shared[(c + j) * grid.plane()] = sum[j] / total;
  }
}

template <bool Wide>
__device__ void weigh_images(const float* x, const Falloff& falloff, unsigned short* weights, int batch,
                             const Grid& grid) {
  const auto room = room_for_tiles<Wide>();
  for_tiles(grid, batch, [&](size_t b, const Tile& tile) {
    __syncthreads();  // the previous tile may still be read
    const auto seen = view(x + b * grid.image(), grid, tile, room);
    __syncthreads();
    if (!tile.inside(grid, 0, 0)) return;
    unsigned short* out = weights + b * grid.table() + tile.at(grid);
    with_channels(grid.channels, [&](auto known) { weigh<decltype(known)::value>(seen, grid, tile, falloff, out); });
  });
}

template <bool Wide>
__device__ void share_images(const float* gradient, const unsigned short* weights, float* shared, int batch,
                             const Grid& grid) {
  const auto room = room_for_tiles<Wide>();
  for_tiles(grid, batch, [&](size_t b, const Tile& tile) {
    __syncthreads();  // the previous tile may still be read
    const auto seen = view(gradient + b * grid.image(), grid, tile, room);
    __syncthreads();
    if (!tile.inside(grid, 0, 0)) return;
    const unsigned short* w = weights + b * grid.table() + tile.at(grid);
    float* out = shared + b * grid.image() + tile.at(grid);
    with_channels(grid.channels, [&](auto known) { share<decltype(known)::value>(seen, w, grid, tile, out); });
  });
}

template <bool Wide>
__device__ void share_images_directly(const float* gradient, const float* x, const Falloff& falloff, float* shared,
                                      int batch, const Grid& grid) {
  const auto room = room_for_tiles<Wide>();
  for_tiles(grid, batch, [&](size_t b, const Tile& tile) {
    __syncthreads();  // the previous tile may still be read
    const auto colours = view(x + b * grid.image(), grid, tile, room);
    const auto seen = view(gradient + b * grid.image(), grid, tile, behind(room, grid));
    __syncthreads();
    if (!tile.inside(grid, 0, 0)) return;
    float* out = shared + b * grid.image() + tile.at(grid);
    with_channels(grid.channels, [&](auto known) {
      share_directly<decltype(known)::value>(seen, colours, grid, tile, falloff, out);
    });
  });
}

}  // namespace unblemish::cuda

// weights: halves, (batch, (2 radius + 1)^2, plane); those outside the image are 0. reach: at most radius; of the
// kernels that are not _wide, channels tiles of (kAcross + 2 reach) (kDown + 2 reach) floats are at most kRoom, in
// share_gradient_direct twice as many.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_sharing_weights(const float* __restrict__ x, float inverse_sigma_space, float inverse_sigma_colour,
                              unsigned short* __restrict__ weights, int batch, int channels, int height, int width,
                              int radius, int reach) {
  using namespace unblemish::cuda;
  weigh_images<false>(x, {inverse_sigma_space, inverse_sigma_colour}, weights, batch,
                      {channels, height, width, radius, reach});
}

extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_sharing_weights_wide(const float* __restrict__ x, float inverse_sigma_space,
                                   float inverse_sigma_colour, unsigned short* __restrict__ weights, int batch,
                                   int channels, int height, int width, int radius, int reach) {
  using namespace unblemish::cuda;
  weigh_images<true>(x, {inverse_sigma_space, inverse_sigma_colour}, weights, batch,
                     {channels, height, width, radius, reach});
}

// reach: that of the table, so that the weights alone say what counts.
extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_share_gradient(const float* __restrict__ gradient, const unsigned short* __restrict__ weights,
                             float* __restrict__ shared, int batch, int channels, int height, int width, int radius,
                             int reach) {
  using namespace unblemish::cuda;
  share_images<false>(gradient, weights, shared, batch, {channels, height, width, radius, reach});
}

extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_share_gradient_wide(const float* __restrict__ gradient, const unsigned short* __restrict__ weights,
                                  float* __restrict__ shared, int batch, int channels, int height, int width,
                                  int radius, int reach) {
  using namespace unblemish::cuda;
  share_images<true>(gradient, weights, shared, batch, {channels, height, width, radius, reach});
}

extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_share_gradient_direct(const float* __restrict__ gradient, const float* __restrict__ x,
                                    float inverse_sigma_space, float inverse_sigma_colour,
                                    float* __restrict__ shared, int batch, int channels, int height, int width,
                                    int radius, int reach) {
  using namespace unblemish::cuda;
  share_images_directly<false>(gradient, x, {inverse_sigma_space, inverse_sigma_colour}, shared, batch,
                               {channels, height, width, radius, reach});
}

extern "C" __global__ void __launch_bounds__(unblemish::cuda::kThreads, 4)
    unblemish_share_gradient_direct_wide(const float* __restrict__ gradient, const float* __restrict__ x,
                                         float inverse_sigma_space, float inverse_sigma_colour,
                                         float* __restrict__ shared, int batch, int channels, int height, int width,
                                         int radius, int reach) {
  using namespace unblemish::cuda;
  share_images_directly<true>(gradient, x, {inverse_sigma_space, inverse_sigma_colour}, shared, batch,
                              {channels, height, width, radius, reach});
}
