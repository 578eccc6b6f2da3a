import sys
from pathlib import Path

# ranks are processes of their own: what they run must be importable by name
sys.path.insert(0, str(Path(__file__).parent))
