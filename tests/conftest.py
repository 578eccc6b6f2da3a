import sys
from pathlib import Path

# tests share small networks: `from networks import residual`
sys.path.insert(0, str(Path(__file__).parent))
